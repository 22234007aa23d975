"""Manifests under deploy/: Kubernetes' own schema, KubeRay's fields, and what they say of the command line and the image.

Kubernetes' objects, pod templates included, are held against its published JSON schema (`kubernetes-validate`). KubeRay publishes
its schema with the operator only: the fields of its resources below are those of its v1.6 API reference. The overlays are looked at as
kustomize builds them, where `kubectl` or `kustomize` is on PATH.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from docs_commands import problem

from degre_prod.config import load_settings
from degre_prod.errors import ConfigurationError
from orchestration.jobs.command import job_command

REPOSITORY = Path(__file__).parents[2]
KUBERAY = REPOSITORY / "deploy" / "kuberay"
DOCKER = REPOSITORY / "deploy" / "docker"
KUBERNETES = "1.33"
OVERLAYS = ("base", "overlays/small", "overlays/production")
KUSTOMIZE = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]

# type of each field; those marked * are required
RAYJOB = {
    "entrypoint": str, "backoffLimit": int, "activeDeadlineSeconds": int, "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int, "submissionMode": str, "submitterPodTemplate": dict, "rayClusterSpec": dict,
    "clusterSelector": dict, "runtimeEnvYAML": str, "jobId": str, "suspend": bool, "metadata": dict,
}  # fmt: skip
RAYCLUSTER = {
    "rayVersion": str, "authOptions": dict, "*headGroupSpec": dict, "workerGroupSpecs": list, "autoscalerOptions": dict,
    "enableInTreeAutoscaling": bool, "suspend": bool, "gcsFaultToleranceOptions": dict,
}  # fmt: skip
RAYSERVICE = {
    "serveConfigV2": str, "rayClusterConfig": dict, "upgradeStrategy": dict, "excludeHeadPodFromServeSvc": bool, "serveService": dict,
    "rayClusterDeletionDelaySeconds": int,
}  # fmt: skip
HEAD = {"*rayStartParams": dict, "*template": dict, "serviceType": str}
WORKERS = {
    "*groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "*rayStartParams": dict, "*template": dict,
}  # fmt: skip
AUTH = {"mode": str, "secretName": str}
GCS = {"redisUsername": dict, "redisPassword": dict, "externalStorageNamespace": str, "redisAddress": str}
AUTOSCALER = {
    "resources": dict, "image": str, "imagePullPolicy": str, "securityContext": dict, "idleTimeoutSeconds": int, "upscalingMode": str,
    "version": str, "env": list, "envFrom": list, "volumeMounts": list,
}  # fmt: skip


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(KUBERAY.rglob("*.yaml")):
        if file.name not in (
            "kustomization.yaml",
            "references.yaml",
            "degre.yaml",
        ):  # kustomize's own, and our settings
            for document in yaml.safe_load_all(file.read_text()):
                yield f"{file.name}: {document['kind']}", document


DOCUMENTS = dict(documents())


@cache
def built(overlay: str) -> dict[str, dict[str, Any]]:
    """What kustomize makes of an overlay, by kind and name."""
    if shutil.which(KUSTOMIZE[0]) is None:
        pytest.skip("neither kubectl nor kustomize on PATH")
    done = subprocess.run([*KUSTOMIZE, KUBERAY / overlay], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return {f"{d['kind']} {d['metadata']['name']}": d for d in yaml.safe_load_all(done.stdout)}


def fields(value: dict[str, Any], known: dict[str, Any]) -> None:
    types = {name.removeprefix("*"): kind for name, kind in known.items()}
    assert {name: type(v) for name, v in value.items()} == {name: types.get(name) for name in value}
    assert {name[1:] for name in known if name.startswith("*")} <= set(value)


def cluster_of(document: dict[str, Any]) -> dict[str, Any] | None:
    spec = document.get("spec", {})
    places = {"RayJob": spec.get("rayClusterSpec"), "RayCluster": spec, "RayService": spec.get("rayClusterConfig")}
    return places.get(document["kind"])


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The specs of every pod that a document makes."""
    cluster, templates = cluster_of(document), []
    if cluster is not None:
        templates = [cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])]
    if document["kind"] == "RayJob":
        templates.append(document["spec"]["submitterPodTemplate"])
    if document["kind"] == "CronJob":
        templates.append(document["spec"]["jobTemplate"]["spec"]["template"])
    if document["kind"] in ("StatefulSet", "Deployment"):
        templates.append(document["spec"]["template"])
    return [template["spec"] for template in templates]


def check(document: dict[str, Any]) -> None:
    """Fail on a document that a cluster with KubeRay would refuse."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(document["metadata"]) - {"namespace", "labels"} in ({"name"}, {"generateName"})
    if document["kind"] == "RayJob":
        fields(document["spec"], RAYJOB)
    if document["kind"] == "RayService":
        fields(document["spec"], RAYSERVICE)
        assert document["spec"]["upgradeStrategy"] in ({"type": "NewCluster"}, {"type": "None"})
    cluster = cluster_of(document)
    assert cluster is not None
    fields(cluster, RAYCLUSTER)
    fields(cluster["authOptions"], AUTH)
    fields(cluster.get("gcsFaultToleranceOptions", {}), GCS)
    fields(cluster.get("autoscalerOptions", {}), AUTOSCALER)
    fields(cluster["headGroupSpec"], HEAD)
    for group in cluster["workerGroupSpecs"]:
        fields(group, WORKERS)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods(document):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": pod}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_all_the_manifests_are_looked_at() -> None:
    assert sorted(DOCUMENTS) == [
        "exporter.yaml: Deployment",
        "exporter.yaml: NetworkPolicy",
        "exporter.yaml: Service",
        "network.yaml: NetworkPolicy",
        "nightly.yaml: CronJob",
        "nightly.yaml: RayCluster",
        "rayjob.yaml: RayJob",
        "redis.yaml: NetworkPolicy",
        "redis.yaml: Service",
        "redis.yaml: StatefulSet",
        "serve.yaml: PodDisruptionBudget",
        "serve.yaml: RayService",
        "storage.yaml: PersistentVolumeClaim",
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_cluster_would_take_it(name: str) -> None:
    check(DOCUMENTS[name])


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("nightly.yaml: CronJob", "spec.schedule", None),
        ("nightly.yaml: CronJob", "spec.jobTemplate.spec.template.spec.containers", "one"),
        ("nightly.yaml: RayCluster", "spec.headGroupSpec.template.spec.containers.0.readinessProbe.httpGet.prot", 1),
        ("rayjob.yaml: RayJob", "spec.entryPoint", "degre retrain"),
        ("rayjob.yaml: RayJob", "spec.backoffLimit", "none"),
        ("rayjob.yaml: RayJob", "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("storage.yaml: PersistentVolumeClaim", "spec.accessMode", ["ReadWriteMany"]),
        ("serve.yaml: RayService", "spec.serveConfig", {}),
        ("serve.yaml: RayService", "spec.upgradeStrategy.type", "Rolling"),
        (
            "serve.yaml: RayService",
            "spec.rayClusterConfig.workerGroupSpecs.0.template.spec.volumes.1.configMap",
            "degre",
        ),
        ("redis.yaml: StatefulSet", "spec.serviceName", 1),
    ],
)
def test_a_slip_is_noticed(name: str, path: str, value: Any) -> None:
    document = yaml.safe_load(yaml.safe_dump(DOCUMENTS[name]))
    *way, last = path.split(".")
    place = document
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_cluster_would_take_what_kustomize_makes_of_an_overlay(overlay: str) -> None:
    made = built(overlay)
    for document in made.values():
        check(document)
    [settings] = [d for d in made.values() if d["kind"] == "ConfigMap"]
    for pod in pods(made["RayService degre-serve"]):  # a changed file has another name, and brings new pods
        assert [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v] == [settings["metadata"]["name"]]


def test_the_overlays_change_what_they_are_for() -> None:
    small, production = built("overlays/small"), built("overlays/production")
    assert "StatefulSet degre-redis" in small
    assert not any("Redis" in name or "redis" in name for name in production)
    for document in production.values():
        assert {c["image"] for pod in pods(document) for c in pod["containers"]} <= {"registry.example.com/degre:0.1.0"}
    cluster = production["RayService degre-serve"]["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"]
    [group] = cluster["workerGroupSpecs"]
    serving = load_settings(KUBERAY / "base" / "degre.yaml").serving
    most = serving.max_replicas or serving.replicas
    assert int(group["rayStartParams"]["num-cpus"]) * group["maxReplicas"] >= most * serving.cpus_per_replica
    [base] = built("base")["RayService degre-serve"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert int(base["rayStartParams"]["num-cpus"]) * base["replicas"] >= serving.replicas * serving.cpus_per_replica


def test_the_service_is_that_of_deploy_serve_yaml() -> None:
    from ray.serve.schema import ServeDeploySchema

    spec = DOCUMENTS["serve.yaml: RayService"]["spec"]
    ours = yaml.safe_load(spec["serveConfigV2"])
    ServeDeploySchema.model_validate(ours)
    there = yaml.safe_load((REPOSITORY / "deploy" / "serve.yaml").read_text())
    arguments = ours["applications"][0].pop("args")
    assert set(there["applications"][0].pop("args")) == set(arguments) == {"bundle", "config"}
    assert ours == there
    assert (KUBERAY / "base" / "degre.yaml").read_text() == (REPOSITORY / "deploy" / "degre.yaml").read_text()
    for pod in pods(DOCUMENTS["serve.yaml: RayService"]):
        [container] = pod["containers"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert arguments["bundle"].startswith("/srv/degre/")
        assert arguments["config"] == "/etc/degre/degre.yaml"
        assert mounts["/srv/degre"]["readOnly"]
        # what docs/operations.md asks of every node, in the shell that starts Ray
        folder = re.search(r"serving\.haproxy (\S+?)\)", container["args"][0])
        assert folder
        assert folder[1].startswith("/var/lib/degre")
        assert load_settings(KUBERAY / "base" / "degre.yaml").serving.state_dir == Path("/var/lib/degre")
        assert {"/var/lib/degre", "/etc/degre"} <= set(mounts)
        assert {"name": "RAY_worker_niceness", "value": "0"} in container["env"]


def test_kubernetes_sets_no_variable_that_the_settings_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service degre-redis in the namespace is DEGRE_REDIS_SERVICE_HOST in every pod that does not refuse it."""
    for name, document in DOCUMENTS.items():
        for pod in pods(document):
            assert pod.get("enableServiceLinks") is False or document["kind"] == "StatefulSet", name
    monkeypatch.setenv("DEGRE_REDIS_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ConfigurationError, match="DEGRE_REDIS_SERVICE_HOST is not a setting"):
        load_settings()


def test_only_those_who_submit_reach_the_job_server() -> None:
    policy = DOCUMENTS["network.yaml: NetworkPolicy"]["spec"]
    [rule] = [r for r in policy["ingress"] if {"port": 8265} in r.get("ports", [])]
    label = rule["from"][0]["podSelector"]["matchLabels"]
    night = DOCUMENTS["nightly.yaml: CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    for template in (night, DOCUMENTS["rayjob.yaml: RayJob"]["spec"]["submitterPodTemplate"]):
        assert template["metadata"]["labels"] == label
    assert all("from" in r or r["ports"] == [{"port": 8000}] for r in policy["ingress"])


def taken(words: list[str]) -> None:
    """Fail on a line that the command line would not take."""
    assert words[0] == "degre"
    assert problem(tuple(words[1:])) is None


def test_they_run_commands_that_there_are() -> None:
    taken(shlex.split(DOCUMENTS["rayjob.yaml: RayJob"]["spec"]["entrypoint"]))
    [container] = pods(DOCUMENTS["nightly.yaml: CronJob"])[0]["containers"]
    assert container["command"][:3] == ["degre", "submit", "--json"]
    sent = job_command(container["command"][3:], None)
    taken(shlex.split(sent.entrypoint))
    [exporter] = pods(DOCUMENTS["exporter.yaml: Deployment"])[0]["containers"]
    taken(exporter["command"])
    [rule] = DOCUMENTS["nightly.yaml: CronJob"]["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_every_pod_runs_the_image_as_its_user_and_the_nodes_share_the_run_folder() -> None:
    version = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    user = re.search(r"--uid (\d+)", (DOCKER / "Dockerfile").read_text())
    assert version
    assert user
    for document in DOCUMENTS.values():
        for pod in pods(document):
            [container] = pod["containers"]
            if document["kind"] == "StatefulSet":
                continue  # Redis
            assert container["image"] == f"degre:{version[1]}"
            assert pod["securityContext"]["runAsUser"] == int(user[1])
            if container["name"].startswith("ray-"):
                mount = container["volumeMounts"][0]
                volume = pod["volumes"][0]
                assert {"name": volume["name"], "mountPath": "/srv/degre"}.items() <= mount.items()
                claim = DOCUMENTS["storage.yaml: PersistentVolumeClaim"]["metadata"]["name"]
                assert volume["persistentVolumeClaim"]["claimName"] == claim


def test_nobody_without_the_token_may_submit_and_versions_agree() -> None:
    pinned = re.search(r"^ray==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    for document in DOCUMENTS.values():
        if (cluster := cluster_of(document)) is not None:
            assert cluster["authOptions"]["mode"] == "token"
            assert cluster["rayVersion"] == pinned[1]
    [container] = pods(DOCUMENTS["nightly.yaml: CronJob"])[0]["containers"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["RAY_AUTH_MODE"]["value"] == "token"
    cluster_name = DOCUMENTS["nightly.yaml: RayCluster"]["metadata"]["name"]
    assert variables["RAY_ADDRESS"]["value"] == f"http://{cluster_name}-head-svc:8265"
    secret = DOCUMENTS["nightly.yaml: RayCluster"]["spec"]["authOptions"]["secretName"]
    assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": secret, "key": "auth_token"}
    services = yaml.safe_load((DOCKER / "two-node.yaml").read_text())["services"]
    assert all(service["environment"]["RAY_AUTH_MODE"] == "token" for service in services.values())
