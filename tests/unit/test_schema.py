"""schema.yaml: what is read back is what was written, and every contradiction is named on one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import crafted
import pytest
import yaml
from helpers import small_schema

from degre_prod.errors import SchemaError
from degre_prod.schema import DataSchema, load_schema, parse_schema

FULL = crafted.schema(
    **crafted.rich(validation_start="2026-01-02T00:00:00Z", test_start="2026-01-03T00:00:00.000001Z", shown_length=5)
)


@pytest.mark.parametrize("schema", [small_schema("int64", ttl_seconds=60), small_schema("string"), FULL])
def test_yaml_gives_back_an_equal_schema(schema: DataSchema, tmp_path: Path) -> None:
    assert parse_schema(schema.to_yaml()) == schema
    (tmp_path / "schema.yaml").write_text(schema.to_yaml())
    assert load_schema(tmp_path) == load_schema(tmp_path / "schema.yaml") == schema
    assert load_schema(tmp_path).digest() == schema.digest()


def test_the_digest_changes_with_the_schema() -> None:
    digests = {small_schema("int64", list_length=n).digest() for n in (1, 2, 3)} | {FULL.digest()}
    assert len(digests) == 4


def test_what_is_left_out_has_defaults() -> None:
    schema = small_schema("int64")
    assert schema.logged_length == schema.list_length == 2
    assert schema.slot_weights_OL() == ((1.0, 1.0),)
    assert FULL.logged_length == 5


def changed(**changes: Any) -> str:
    """YAML of the full schema with dotted keys changed: `user__features__0__size=None`."""
    document = yaml.safe_load(FULL.to_yaml())
    for dotted, value in changes.items():
        *path, last = (int(p) if p.isdigit() else p for p in dotted.split("__"))
        at = document
        for part in path:
            at = at[part]
        at[last] = value
    return yaml.safe_dump(document)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"user__features__0__size": None}, "taste: `size` belongs to vectors"),
        ({"user__features__1__size": 2}, "age: `size` belongs to vectors"),
        ({"user__features__2__max_length": None}, "history: `max_length` belongs to id sequences"),
        ({"user__features__1__max_length": 4}, "age: `max_length` belongs to id sequences"),
        ({"user__features__3__transform": "log1p"}, "segment: `transform` is for numeric"),
        ({"user__features__1__name": "taste"}, "user features: declared twice: taste"),
        ({"item__features__1__name": "style"}, "item features: declared twice: style"),
        ({"objectives__1__name": "click"}, "objectives: declared twice: click"),
        ({"context__1__name": "hour"}, "context: declared twice: hour"),
        ({"scores": ["upstream", "upstream"]}, "declared twice: upstream"),
        ({"scores": ["discount"]}, "scores and candidate features: declared twice: discount"),
        ({"recent_event_types": ["click", "click"]}, "recent event types: declared twice: click"),
        ({"context__0__kind": "vector", "context__0__size": 2}, "hour: context and candidate features are numeric or"),
        ({"list_length": 7}, "list_length 7 is longer than max_candidates 6"),
        ({"objectives__0__slot_weights": [1.0, 0.5]}, "click: 2 slot weights for 3 slots"),
        ({"objectives__0__slot_weights": []}, "click: 0 slot weights for 3 slots"),
        ({"validation_start": "2026-01-02T00:00:00"}, "need a time zone"),
        ({"validation_start": "2026-01-04T00:00:00Z"}, "validation_start lies after test_start"),
        ({"validation_start": None}, "validation_start and test_start go together"),
        ({"test_start": None}, "validation_start and test_start go together"),
        ({"objectives": []}, "objectives: "),
        ({"objectives__0__weight": -1}, "objectives.0.weight: "),
        ({"list_length": 0}, "list_length: "),
        ({"id_type": "uuid"}, "id_type: "),
        ({"format_version": 2}, "format_version: "),
        ({"user__features__0__name": "Taste"}, "user.features.0.name: "),
        ({"user__features__0__kind": "image"}, "user.features.0.kind: "),
        ({"user__ttl_seconds": 0}, "user.ttl_seconds: "),
        ({"colour": "red"}, "colour: "),
    ],
)
def test_each_contradiction_is_named_on_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(said)) as caught:
        parse_schema(changed(**changes), origin="here/schema.yaml")
    assert str(caught.value).startswith("here/schema.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a list", "a: [", "just words"])
def test_what_is_no_schema_at_all_says_so(text: str) -> None:
    with pytest.raises(SchemaError, match=r"^schema\.yaml.*: .+") as caught:
        parse_schema(text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_who_writes_one(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="degre data convert"):
        load_schema(tmp_path)
