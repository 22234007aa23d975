"""docs/your-data.md: its script writes a valid data set, and it names every rule and field there is."""

import re
from pathlib import Path

import pytest

from degre_prod.log_rules import RULES
from degre_prod.records import impression_columns
from degre_prod.schema import DataSchema, load_schema
from degre_prod.validation import validate_dataset

PAGE = (Path(__file__).parents[2] / "docs" / "your-data.md").read_text()
NOW_US = 1_800_000_000_000_000  # 2027


def test_the_script_of_the_page_writes_a_valid_data_set(tmp_path, monkeypatch):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "docs/your-data.md", "exec"), {})
    report = validate_dataset(tmp_path / "data" / "mine", now_us=NOW_US, max_rejected_share=0)
    schema = load_schema(tmp_path / "data" / "mine")
    assert (report.log.accepted, report.log.rejected, report.log.ignored_columns) == (2000, 0, ())
    assert (report.user_features.entities, report.item_features.entities) == (200, 300)
    assert report.log.first_request < schema.validation_start.isoformat()
    assert schema.test_start.isoformat() < report.log.last_request


@pytest.mark.parametrize("name", [*RULES, *sorted(set(DataSchema.model_fields) - {"format_version"})])
def test_the_page_explains_every_rule_and_every_field(name):
    assert f"`{name}`" in PAGE


def test_the_page_lists_every_column(tmp_path):
    (example,) = re.findall(r'write_text\("""\\\n(.*?)"""\)', PAGE, re.DOTALL)
    (tmp_path / "schema.yaml").write_text(example)
    for column in impression_columns(load_schema(tmp_path)):
        assert f"`{column.name}`" in PAGE
