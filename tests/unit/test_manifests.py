"""Manifests under deploy/: Kubernetes' own schema, KubeRay's fields, and what they say of the command line and the image.

Kubernetes' objects, pod templates included, are held against its published JSON schema (`kubernetes-validate`). KubeRay publishes
its schema with the operator only: the fields of its resources below are those of its v1.6 API reference.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from orchestration import cli
from orchestration.jobs.command import job_command

REPOSITORY = Path(__file__).parents[2]
KUBERAY = REPOSITORY / "deploy" / "kuberay"
DOCKER = REPOSITORY / "deploy" / "docker"
KUBERNETES = "1.33"

# type of each field; those marked * are required
RAYJOB = {
    "entrypoint": str, "backoffLimit": int, "activeDeadlineSeconds": int, "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int, "submissionMode": str, "submitterPodTemplate": dict, "rayClusterSpec": dict,
    "clusterSelector": dict, "runtimeEnvYAML": str, "jobId": str, "suspend": bool, "metadata": dict,
}  # fmt: skip
RAYCLUSTER = {
    "rayVersion": str, "authOptions": dict, "*headGroupSpec": dict, "workerGroupSpecs": list, "autoscalerOptions": dict,
    "enableInTreeAutoscaling": bool, "suspend": bool,
}  # fmt: skip
HEAD = {"*rayStartParams": dict, "*template": dict, "serviceType": str}
WORKERS = {
    "*groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "*rayStartParams": dict, "*template": dict,
}  # fmt: skip
AUTH = {"mode": str, "secretName": str}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(KUBERAY.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            yield f"{file.name}: {document['kind']}", document


DOCUMENTS = dict(documents())


def fields(value: dict[str, Any], known: dict[str, Any]) -> None:
    types = {name.removeprefix("*"): kind for name, kind in known.items()}
    assert {name: type(v) for name, v in value.items()} == {name: types.get(name) for name in value}
    assert {name[1:] for name in known if name.startswith("*")} <= set(value)


def cluster_of(document: dict[str, Any]) -> dict[str, Any] | None:
    spec = document["spec"]
    return {"RayJob": spec.get("rayClusterSpec"), "RayCluster": spec}.get(document["kind"])


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The specs of every pod that a document makes."""
    cluster, templates = cluster_of(document), []
    if cluster is not None:
        templates = [cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])]
    if document["kind"] == "RayJob":
        templates.append(document["spec"]["submitterPodTemplate"])
    if document["kind"] == "CronJob":
        templates.append(document["spec"]["jobTemplate"]["spec"]["template"])
    return [template["spec"] for template in templates]


def check(document: dict[str, Any]) -> None:
    """Fail on a document that a cluster with KubeRay would refuse."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(document["metadata"]) in ({"name"}, {"generateName"})
    if document["kind"] == "RayJob":
        fields(document["spec"], RAYJOB)
    cluster = cluster_of(document)
    assert cluster is not None
    fields(cluster, RAYCLUSTER)
    fields(cluster["authOptions"], AUTH)
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
    assert [name.split(": ")[1] for name in DOCUMENTS] == ["CronJob", "RayCluster", "RayJob", "PersistentVolumeClaim"]


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


def taken(words: list[str]) -> None:
    """Fail on a line that the command line would not take."""
    assert words[0] == "degre"
    command = get_command(cli.app).commands[words[1]]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words[2:] if word.startswith("-")} <= known


def test_they_run_commands_that_there_are() -> None:
    taken(shlex.split(DOCUMENTS["rayjob.yaml: RayJob"]["spec"]["entrypoint"]))
    [container] = pods(DOCUMENTS["nightly.yaml: CronJob"])[0]["containers"]
    assert container["command"][:3] == ["degre", "submit", "--json"]
    sent = job_command(container["command"][3:], None)
    taken(shlex.split(sent.entrypoint))
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
            assert container["image"] == f"degre:{version[1]}"
            assert pod["securityContext"]["runAsUser"] == int(user[1])
            if container["name"].startswith("ray-"):
                [mount] = container["volumeMounts"]
                [volume] = pod["volumes"]
                assert mount == {"name": volume["name"], "mountPath": "/srv/degre"}
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
