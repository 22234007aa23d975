"""KubeRay's own schemas against our manifests and against what `kuberay.py` says of them.

They are the operator's and come in its Helm chart alone, so these tests need a copy of it:

    git clone --depth 1 --branch v1.6.2 https://github.com/ray-project/kuberay
    DEGRE_TEST_KUBERAY_CRDS=kuberay/helm-chart/kuberay-operator/crds pytest tests/unit/test_kuberay_crds.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kuberay
import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "deploy" / "kuberay"
FOLDER = os.environ.get("DEGRE_TEST_KUBERAY_CRDS")
DEPRECATED = {"serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"}
TYPES = {"string": str, "integer": int, "boolean": bool, "number": float, "array": list, "object": dict}

pytestmark = pytest.mark.skipif(not FOLDER, reason="DEGRE_TEST_KUBERAY_CRDS names no folder with KubeRay's schemas")


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """The operator's schema of a kind, made to refuse fields that it does not know."""
    definition = yaml.safe_load((Path(str(FOLDER)) / f"ray.io_{kind.lower()}s.yaml").read_text())
    [version] = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    close(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def close(schema: Any) -> None:
    """No other fields than those declared, in the whole tree."""
    if isinstance(schema, list):
        for part in schema:
            close(part)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            close(part)


def ours() -> Iterator[dict[str, Any]]:
    for file in sorted(MANIFESTS.rglob("*.yaml")):
        yield from (d for d in yaml.safe_load_all(file.read_text()) if d.get("apiVersion") == "ray.io/v1")


@pytest.mark.parametrize("document", ours(), ids=lambda d: d["kind"])
def test_the_operators_schema_takes_our_manifests(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema_of(document["kind"])).validate(document)
    document["spec"]["anything"] = 1
    with pytest.raises(jsonschema.ValidationError, match="anything"):
        jsonschema.Draft202012Validator(schema_of(document["kind"])).validate(document)


def places() -> Iterator[tuple[str, Mapping[str, Any], kuberay.Fields]]:
    """Each list of fields and the part of the schema it is about."""
    for kind, path, fields in (
        ("RayJob", "spec", kuberay.RAYJOB),
        ("RayService", "spec", kuberay.RAYSERVICE),
        ("RayCluster", "spec", kuberay.RAYCLUSTER),
        ("RayCluster", "spec.headGroupSpec", kuberay.HEAD),
        ("RayCluster", "spec.workerGroupSpecs", kuberay.WORKERS),
        ("RayCluster", "spec.authOptions", kuberay.AUTH),
        ("RayCluster", "spec.gcsFaultToleranceOptions", kuberay.GCS),
        ("RayCluster", "spec.gcsFaultToleranceOptions.redisPassword", kuberay.CREDENTIAL),
        ("RayCluster", "spec.autoscalerOptions", kuberay.AUTOSCALER),
    ):
        part = schema_of(kind)
        for name in path.split("."):
            part = part["properties"][name]
            part = part.get("items", part)
        yield f"{kind}.{path}", part, fields


def test_the_list_is_the_schemas() -> None:
    for place, part, fields in places():
        assert {name.removeprefix("*") for name in fields} == set(part["properties"]) - DEPRECATED, place
        assert {name[1:] for name in fields if name.startswith("*")} == set(part.get("required", ())), place
        for name, kind in fields.items():
            known = part["properties"][name.removeprefix("*")]
            if isinstance(kind, tuple):
                assert set(kind) == set(known["enum"]), f"{place}.{name}"
            elif kind == kuberay.STRINGS:
                assert known["additionalProperties"]["type"] == "string", f"{place}.{name}"
            else:
                assert TYPES[known["type"]] is kind, f"{place}.{name}"
