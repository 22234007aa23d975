"""What the KubeRay operator takes: fields, types, enums and rules of its resources, as release 1.6.2 has them.

Facts in our own words, from that release's Go types, API reference and validation. Its schemas come with the operator alone: no
package on PyPI carries them. `unit/test_kuberay_crds.py` holds this page to them where they are at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

RELEASE = "1.6.2"
STRINGS = "an object of strings"
Kind = type | tuple[str, ...] | str  # of a field: a type, the strings it may be, or STRINGS
Fields = Mapping[str, Kind]

# A required field has a *. Left out, because they are deprecated and without effect: the RayService's two …UnhealthySecondThreshold.
RAYJOB: Fields = {
    "entrypoint": str, "runtimeEnvYAML": str, "jobId": str, "metadata": STRINGS, "entrypointNumCpus": float,
    "entrypointNumGpus": float, "entrypointResources": str, "submissionMode": str, "submitterPodTemplate": dict,
    "submitterConfig": dict, "backoffLimit": int, "activeDeadlineSeconds": int, "preRunningDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "deletionStrategy": dict, "rayClusterSpec": dict,
    "clusterSelector": STRINGS, "suspend": bool, "managedBy": str,
}  # fmt: skip
RAYSERVICE: Fields = {
    "serveConfigV2": str, "*rayClusterConfig": dict, "upgradeStrategy": dict, "serveService": dict, "managedBy": str,
    "excludeHeadPodFromServeSvc": bool, "rayClusterDeletionDelaySeconds": int,
}  # fmt: skip
RAYCLUSTER: Fields = {
    "rayVersion": str, "authOptions": dict, "*headGroupSpec": dict, "workerGroupSpecs": list, "autoscalerOptions": dict,
    "enableInTreeAutoscaling": bool, "gcsFaultToleranceOptions": dict, "headServiceAnnotations": STRINGS, "suspend": bool,
    "upgradeStrategy": dict, "managedBy": str,
}  # fmt: skip
HEAD: Fields = {
    "*template": dict, "rayStartParams": STRINGS, "resources": STRINGS, "labels": STRINGS, "serviceType": str,
    "headService": dict, "enableIngress": bool,
}  # fmt: skip
WORKERS: Fields = {
    "*groupName": str, "*template": dict, "rayStartParams": STRINGS, "resources": STRINGS, "labels": STRINGS, "replicas": int,
    "*minReplicas": int, "*maxReplicas": int, "numOfHosts": int, "idleTimeoutSeconds": int, "scaleStrategy": dict, "suspend": bool,
}  # fmt: skip
AUTH: Fields = {"mode": ("disabled", "token"), "secretName": str, "enableK8sTokenAuth": bool}
GCS: Fields = {
    "*redisAddress": str, "redisUsername": dict, "redisPassword": dict, "externalStorageNamespace": str,
}  # fmt: skip
CREDENTIAL: Fields = {"value": str, "valueFrom": dict}
AUTOSCALER: Fields = {
    "resources": dict, "image": str, "imagePullPolicy": str, "securityContext": dict, "idleTimeoutSeconds": int,
    "upscalingMode": ("Default", "Aggressive", "Conservative"), "version": ("v1", "v2"), "env": list, "envFrom": list,
    "volumeMounts": list,
}  # fmt: skip
# The schema takes any string here; the operator does not.
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
SERVICE_UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")

# Its services append -serve-svc to a cluster's name, a service or job six characters to make a cluster's.
LONGEST_NAME = {"RayCluster": 53, "RayService": 47, "RayJob": 47}
TOKENS_SINCE = (2, 52)  # the Ray version that `authOptions.mode: token` needs
# On the operator's own pods, whether Helm or kustomize installed it; their app.kubernetes.io/name differs.
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}


def cluster_of(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cluster's part of one of KubeRay's objects; None in any other."""
    spec = document.get("spec", {})
    places = {"RayJob": spec.get("rayClusterSpec"), "RayCluster": spec, "RayService": spec.get("rayClusterConfig")}
    return places.get(document["kind"])


def problems(document: Mapping[str, Any]) -> list[str]:
    """Why the operator, or the schema it brings, would refuse a RayCluster, RayJob or RayService; pods are not looked into."""
    kind, spec = document["kind"], document["spec"]
    found = [f"{name} is no field" for name in document.keys() - {"apiVersion", "kind", "metadata", "spec"}]
    known = {
        "name",
        "generateName",
        "namespace",
        "labels",
        "annotations",
    }  # of Kubernetes' metadata, those that are for people
    found += [f"metadata.{name} is no field to set" for name in document["metadata"].keys() - known]
    name = document["metadata"].get("name") or document["metadata"]["generateName"] + "abcde"
    if len(name) > LONGEST_NAME[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        found.append(f"metadata.name: {name} is no DNS label of at most {LONGEST_NAME[kind]} characters")
    if kind == "RayJob":
        found += [*_fields(spec, RAYJOB, "spec"), *_job(spec)]
    if kind == "RayService":
        found += _fields(spec, RAYSERVICE, "spec")
        if spec.get("upgradeStrategy", {}).get("type", "NewCluster") not in SERVICE_UPGRADES:
            found.append(f"spec.upgradeStrategy.type is none of {SERVICE_UPGRADES}")
    cluster = cluster_of(document)
    if cluster is not None:
        found += _cluster(cluster, standing_alone=kind == "RayCluster", serves=kind == "RayService")
    return found


def _fields(value: Mapping[str, Any], known: Fields, place: str) -> Iterator[str]:
    kinds = {name.removeprefix("*"): kind for name, kind in known.items()}
    for name, given in value.items():
        if name not in kinds:
            yield f"{place}.{name} is no field"
        elif not _is(given, kinds[name]):
            yield f"{place}.{name}: {given!r} is not {kinds[name]}"
    for name in known:
        if name.startswith("*") and name[1:] not in value:
            yield f"{place}.{name[1:]} is missing"


def _is(given: object, kind: Kind) -> bool:
    if kind == STRINGS:
        return isinstance(given, dict) and all(isinstance(v, str) for v in given.values())
    if isinstance(kind, tuple):
        return given in kind
    return type(given) is kind or (kind is float and type(given) is int)


def _job(spec: Mapping[str, Any]) -> Iterator[str]:
    if spec.get("submissionMode", MODES[0]) not in MODES:
        yield f"spec.submissionMode is none of {MODES}"
    if spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes", False):
        yield "spec.ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if "rayClusterSpec" not in spec and not spec.get("clusterSelector"):
        yield "spec: one of rayClusterSpec and clusterSelector is needed"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) < 1:
            yield f"spec.{name} is not above 0"
    submitter = spec.get("submitterPodTemplate", {"spec": {"restartPolicy": "Never"}})["spec"]
    if submitter.get("restartPolicy") not in ("Never", "OnFailure"):  # it becomes a Job of Kubernetes
        yield "spec.submitterPodTemplate.spec.restartPolicy is neither Never nor OnFailure"


def _cluster(cluster: Mapping[str, Any], *, standing_alone: bool, serves: bool) -> Iterator[str]:
    yield from _fields(cluster, RAYCLUSTER, "cluster")
    auth, gcs = cluster.get("authOptions", {}), cluster.get("gcsFaultToleranceOptions")
    yield from _fields(auth, AUTH, "authOptions")
    yield from _fields(cluster.get("autoscalerOptions", {}), AUTOSCALER, "autoscalerOptions")
    if gcs is not None:
        yield from _fields(gcs, GCS, "gcsFaultToleranceOptions")
        for name in ("redisUsername", "redisPassword"):
            yield from _fields(gcs.get(name, {}), CREDENTIAL, f"gcsFaultToleranceOptions.{name}")
    version = tuple(int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2])
    if auth.get("mode") == "token" and version < TOKENS_SINCE:
        yield f"authOptions.mode: token needs rayVersion {TOKENS_SINCE[0]}.{TOKENS_SINCE[1]} or later"
    if "upgradeStrategy" in cluster and not standing_alone:
        yield "upgradeStrategy is for a RayCluster of its own"
    head = cluster["headGroupSpec"]
    yield from _fields(head, HEAD, "headGroupSpec")
    ports = {port.get("name") for port in head["template"]["spec"]["containers"][0].get("ports", ())}
    if serves and ports and "serve" not in ports:  # its Service takes the head's ports, or a default set of them
        yield "headGroupSpec: its first container names ports, and none of them `serve`"
    taken = {variable["name"] for variable in head["template"]["spec"]["containers"][0].get("env", ())}
    if "RAY_REDIS_ADDRESS" in taken or (gcs is not None and "REDIS_PASSWORD" in taken) or "REDIS_USERNAME" in taken:
        yield "headGroupSpec: Redis for Ray's state is named in gcsFaultToleranceOptions"
    for group in cluster.get("workerGroupSpecs", ()):
        yield from _fields(group, WORKERS, "workerGroupSpecs")
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not 0 <= least <= group.get("replicas", least) <= most:
            yield "workerGroupSpecs: minReplicas ≤ replicas ≤ maxReplicas does not hold"
    for group in (head, *cluster.get("workerGroupSpecs", ())):
        start = group.get("rayStartParams", {})
        if group.get("resources") and start.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield "resources and rayStartParams both say how much there is"
        if start.keys() & {"labels", "redis-password", "redis-username"}:
            yield "rayStartParams: labels and Redis have fields of their own"
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if cluster.get("enableInTreeAutoscaling") and policy != "Never":
            yield "template.spec.restartPolicy: the autoscaler wants Never, or nothing"
