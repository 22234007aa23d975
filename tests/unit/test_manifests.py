"""Manifests under deploy/: Kubernetes' own schema, KubeRay's fields, and what they say of the command line and the image.

Kubernetes' objects, pod templates included, are held against its published JSON schema (`kubernetes-validate`), KubeRay's against
what is known of its release (`kuberay.py`; against its own schema in test_kuberay_crds.py). The overlays are looked at as kustomize
builds them, where `kubectl` or `kustomize` is on PATH.
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
from kuberay import OPERATOR, cluster_of, problems

from degre_prod.config import load_settings, valid_keys
from degre_prod.errors import ConfigurationError
from orchestration.jobs.command import job_command

REPOSITORY = Path(__file__).parents[2]
KUBERAY = REPOSITORY / "deploy" / "kuberay"
DOCKER = REPOSITORY / "deploy" / "docker"
KUBERNETES = "1.33"
OVERLAYS = ("base", "overlays/small", "overlays/production")
KUSTOMIZE = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]


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
    assert problems(document) == []
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
        ("rayjob.yaml: RayJob", "spec.rayClusterSpec.rayVersion", "2.51.0"),
        ("rayjob.yaml: RayJob", "spec.shutdownAfterJobFinishes", False),
        ("rayjob.yaml: RayJob", "spec.submitterPodTemplate.spec.restartPolicy", "Always"),
        ("nightly.yaml: RayCluster", "spec.authOptions.mode", "tokens"),
        ("nightly.yaml: RayCluster", "spec.gcsFaultToleranceOptions", {"redisPassword": {"value": "one"}}),
        ("nightly.yaml: RayCluster", "spec.workerGroupSpecs.0.minReplicas", 3),
        ("nightly.yaml: RayCluster", "metadata.name", "a" * 54),
        ("storage.yaml: PersistentVolumeClaim", "spec.accessMode", ["ReadWriteMany"]),
        ("serve.yaml: RayService", "spec.serveConfig", {}),
        ("serve.yaml: RayService", "spec.upgradeStrategy.type", "Rolling"),
        (
            "serve.yaml: RayService",
            "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.ports",
            [{"name": "gcs-server", "containerPort": 6379}],
        ),
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
    for document in DOCUMENTS.values():  # and those that the manifests set are settings
        for container in (c for pod in pods(document) for c in pod["containers"]):
            for variable in container.get("env", ()):
                if variable["name"].startswith("DEGRE_"):
                    assert variable["name"].removeprefix("DEGRE_").lower().replace("__", ".") in set(valid_keys())
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
    assert {"matchLabels": OPERATOR} in [peer["podSelector"] for peer in rule["from"]]
    assert all("from" in r or r["ports"] == [{"port": 8000}] for r in policy["ingress"])


def test_no_container_may_do_more_than_its_user() -> None:
    locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for name, document in DOCUMENTS.items():
        for container in (c for pod in pods(document) for c in pod["containers"]):
            assert container.get("securityContext") == locked, name
    cluster = built("overlays/production")["RayService degre-serve"]["spec"]["rayClusterConfig"]
    assert cluster["autoscalerOptions"]["securityContext"] == locked  # of the container that KubeRay adds


def secrets_of(part: Any) -> set[tuple[str, str]]:
    """Name and key of every secret that a document refers to."""
    if isinstance(part, list):
        return set().union(*map(secrets_of, part))
    if not isinstance(part, dict):
        return set()
    own = {(r["name"], r["key"]) for r in [part.get("secretKeyRef")] if r}
    return own.union(*map(secrets_of, part.values()))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manual_creates_the_secrets_that_are_referred_to(overlay: str) -> None:
    manual = (REPOSITORY / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    created = {
        (name, key)
        for name, rest in re.findall(r"create secret generic (\S+)(.*)", manual)
        for key in re.findall(r"--from-literal=(\w+)=", rest)
    }
    for document in (*built(overlay).values(), DOCUMENTS["rayjob.yaml: RayJob"]):
        assert secrets_of(document) <= created


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
