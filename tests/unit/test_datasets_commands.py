"""`degre data`: what it prints, and what it leaves in the folder."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from degre_prod.errors import DataError
from orchestration.commands.data import app


def invoke(*args: object):
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mixed"
    counts = ("--train", 60, "--validation", 20, "--test", 20)
    result = invoke("simulate", "mixed", folder, "--size", "small", *counts, "--json")
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout.splitlines()[-1])


def test_simulate_writes_a_valid_data_set_and_says_so(simulated):
    folder, document = simulated
    assert document["dataset"] == str(folder)
    assert document["validation"]["log"] | {"accepted": 100, "rejected": 0} == document["validation"]["log"]
    assert document["simulation"]["world"] == "mixed"


def test_validate_prints_counts_and_the_first_row_of_each_rule(simulated, tmp_path):
    folder, _ = simulated
    for name in ("schema.yaml", "user_features.parquet", "item_features.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    log = pq.read_table(folder / "impressions.parquet")
    pq.write_table(pa.concat_tables([log, log.slice(3, 1)]), tmp_path / "impressions.parquet")
    result = invoke("validate", tmp_path)
    assert result.exit_code == 0, result.output
    assert "duplicate_request" in result.stdout
    assert re.search(r"duplicate_request +1 +100 +request_id", result.stdout)
    assert "rejected.parquet" in result.stdout
    document = json.loads(invoke("validate", tmp_path, "--json").stdout.splitlines()[-1])
    assert document["log"]["rejected_by_rule"] == {"duplicate_request": 1}
    (tmp_path / "strict.yaml").write_text("data: {max_rejected_share: 0.0}")
    result = invoke("validate", tmp_path, "--config", tmp_path / "strict.yaml")
    assert isinstance(result.exception, DataError)
    assert result.exception.rule == "duplicate_request"


def test_convert_refuses_an_unknown_source_and_names_the_known_ones(tmp_path):
    result = invoke("convert", "netflix", tmp_path, tmp_path / "out")
    assert result.exit_code == 2
    assert "trivago" in result.output
    assert "kuairand" in result.output


def test_convert_checks_what_it_made(tmp_path):
    click = {"user_id": "u", "session_id": "s", "timestamp": 1_541_548_800, "step": 1, "action_type": "clickout item"}
    click |= {"reference": "2", "platform": "DE", "city": "Ulm", "device": "mobile", "current_filters": "5 Star"}
    click |= {"impressions": "1|2|3", "prices": "10|20|30"}
    rows = [click, {**click, "timestamp": 1_541_548_800 + 86_400}, {**click, "step": 7, "reference": "9"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "events.parquet")
    result = invoke("convert", "trivago", tmp_path / "events.parquet", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.splitlines()[-1])
    assert document["conversion"]["rejected_by_rule"] == {"reference_not_shown": 1}
    assert document["validation"]["log"]["accepted"] == 2
