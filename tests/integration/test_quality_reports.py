"""Tuning, ablations and the generated results page, on one tiny seed that all share."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from degre_prod.baselines.registry import TRIALS
from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError, DataError
from orchestration.bench.quality import make_plan
from orchestration.bench.quality_ablations import GROUPS
from orchestration.bench.quality_budget import CHEAPER, cheaper
from orchestration.bench.quality_results import END, START
from orchestration.bench.quality_steps import SeedRun
from orchestration.bench.quality_tune import DEGRE_TRIALS
from orchestration.cli import app

SETTINGS = {
    "evaluator": {
        "prefix_state": "additive",
        "width": 16,
        "epochs": 3,
        "min_steps": 30,
        "togo_steps": 20,
        "batch_size": 128,
    },
    "generator": {"width": 16, "epochs": 4, "batch_size": 8, "learning_rate": 0.01},
    "judge": {"width": 16, "layers": 1, "epochs": 2, "min_steps": 30},
}


def degre(place: Path, command: str, *more: str) -> dict[str, Any]:
    config = place / "config.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    arguments = [
        "bench",
        command,
        "--world",
        "mixed",
        "--size",
        "small",
        "--seeds",
        "1",
        "--logs",
        "300",
        "--mined",
        "40",
    ]
    arguments += ["--test", "30", "--out", str(place / "out"), "--config", str(config), "--json"]
    done = CliRunner().invoke(app, [*arguments, *more])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    degre(folder, "quality", "--methods", "input_order")
    return folder


def made(place: Path) -> set[str]:
    return {str(p.parent.relative_to(place)) for p in place.rglob("made_from.json")}


def test_every_method_has_as_many_configurations() -> None:
    counts = {name: len(of) for name, of in TRIALS.items()} | {"degre": len(DEGRE_TRIALS)}
    assert len(set(counts.values())) == 1, counts


def test_trials_are_judged_on_validation_requests_and_the_best_is_named(place: Path) -> None:
    before = made(place)
    document = degre(place, "tune", "--method", "pointwise,degre", "--share", "0.5")
    assert set(document["trials"]) == {"pointwise", "degre"}
    for method, trials in document["trials"].items():
        judged = [trial["judged"] for trial in trials]
        assert document["chosen"][method] == int(np.argmax(judged))
        assert len(set(judged)) > 1
        assert all(trial["train_seconds"] > 0 for trial in trials)
    assert (
        document["trials"]["degre"][0]["evaluator_calls"] > 0 == document["trials"]["pointwise"][0]["evaluator_calls"]
    )
    new = {name.split("/")[-1].split("-")[0] for name in made(place) - before}
    assert new == {"pointwise", "degre", "calls", "mined", "generator"}  # evaluator and judge are those of the table
    once = made(place)
    assert degre(place, "tune", "--method", "pointwise,degre", "--share", "0.5") == document
    assert made(place) == once


def test_an_ablation_shares_what_it_does_not_change(place: Path) -> None:
    before = made(place)
    document = degre(place, "ablations", "--groups", "beams,exploration,transfer")
    groups = document["groups"]
    assert set(groups) == {"beams", "exploration"}
    usual = document["usual"]
    same = [groups["beams"]["beams union"], groups["exploration"]["0% random lists"]]
    assert all(row == usual for row in same)
    assert usual["minus_usual"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    others = [groups["beams"]["beams prefix"], groups["exploration"]["10% random lists"]]
    assert all(row["mean"] != usual["mean"] and 0 < row["judged"] < 2 for row in others)
    assert others[0]["evaluator_calls"] < usual["evaluator_calls"]  # no value to go is asked
    transfer = document["transfer"]
    assert set(transfer) == {f"{n} candidates, {slots} slots" for n, slots in ((8, 4), (6, 4), (12, 4), (8, 3))}
    assert all(0 < value <= 1 for of in transfer.values() for value in of.values())
    new = [name.split("/")[-1].split("-")[0] for name in made(place) - before]
    assert new.count("evaluator") == 1  # of the log with random lists
    assert new.count("generator") == 2


def test_groups_of_the_method_are_distinct_changes() -> None:
    run = SeedRun(Path("x"), make_plan("mixed", "small", settings=Settings(), logs=None, mined=None, test=10), 0)
    for name, group in GROUPS.items():
        plans = [change.apply(run).plan for change in group.values()]
        assert all(one != other for i, one in enumerate(plans) for other in plans[i + 1 :]), name
    assert GROUPS["mined"]["0.1 of the requests"].apply(run).plan.settings.mining.requests == 800


def test_the_results_page_is_written_from_the_documents(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"# Results\nwhy\n{START}\nold\n{END}\nafter\n")
    arguments = ["bench", "results", "--docs", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--from", str(place / "out")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["documents"] == [
        f"{kind}-small-mixed" for kind in ("ablations", "quality", "tune")
    ]
    text = page.read_text()
    assert text.startswith(f"# Results\nwhy\n{START}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "\nold\n" not in text
    document = json.loads((place / "out" / "quality.json").read_text())
    ours = document["methods"]["degre"]
    assert f"| **`degre`** | {ours['mean']:.3f} ± {(ours['interval'][1] - ours['interval'][0]) / 2:.3f} |" in text
    assert "`beam_evaluator` (searches while answering)" in text
    assert "HR@1 %" in text
    far = document["evaluator"]["detail"]["by_edit_distance"][4]["rmse"]
    assert f"\n| 4 | {far:.3f} |\n" in text
    tuned = json.loads((place / "out" / "tune.json").read_text())
    judged = tuned["trials"]["degre"][tuned["chosen"]["degre"]]["judged"]
    assert f"| **{judged:.4f}** |" in text
    prefix = json.loads((place / "out" / "ablations.json").read_text())["groups"]["beams"]["beams prefix"]
    assert f"| beams | beams prefix | {prefix['mean']:.3f} ±" in text
    assert (tmp_path / "images" / "results-small.png").read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(app, arguments).exit_code == 0  # from what is kept, the same page again
    assert page.read_text() == text
    nothing = CliRunner().invoke(app, [*arguments, "--from", str(tmp_path / "images")])
    assert isinstance(nothing.exception, DataError)
    page.write_text("# Results without marks\n")
    assert isinstance(CliRunner().invoke(app, arguments).exception, DataError)


def test_curves_and_real_clicks_have_sections_of_their_own(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "out", tmp_path / "out")
    shared = ["--methods", "input_order,goalrank", "--shares", "0.5,1", "--out", str(tmp_path / "out")]
    document = degre(place, "quality", *shared)
    (tmp_path / "trivago").mkdir()
    row = {"mrr": 0.61, "interval": [0.6, 0.62], "mrr_not_first": 0.3, "by_seed": [0.61]}
    paired = {"mean": -0.0021, "interval": [-0.0048, 0.0007], "by_seed": [-0.0021]}
    real = {"seeds": [0], "clicks": 1200, "users": 900, "methods": {"degre": row, "lambdarank": row | {"mrr": 0.6121}}}
    (tmp_path / "trivago" / "trivago.json").write_text(json.dumps(real | {"generator_minus_lambdarank": paired}))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results.md").write_text(f"{START}\n{END}\n")
    arguments = ["bench", "results", "--docs", str(docs), "--json"]
    arguments += [part for name in ("out", "trivago") for part in ("--from", str(tmp_path / name))]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    kept = json.loads(done.stdout.splitlines()[-1])["documents"]
    assert {"curves-small-mixed", "trivago"} == set(kept) - {"ablations-small-mixed", "tune-small-mixed"}
    text = (docs / "results.md").read_text()
    low, high = (f"{point['mean']:.3f}" for point in document["curves"]["goalrank"])
    assert f"| `goalrank` | {low} | {high} |" in text
    assert f"| `input_order` | – | {document['methods']['input_order']['mean']:.3f} |" in text
    assert (docs / "images" / "curves-small-mixed.png").read_bytes().startswith(b"\x89PNG")
    assert text.index("| `lambdarank` | 0.6121 |") < text.index("| **`degre`** | 0.6100 | 0.6000 … 0.6200 |")
    assert "-0.0021 (-0.0048 … 0.0007; by seed -0.0021)" in text


@pytest.mark.parametrize(
    ("command", "option", "value"), [("tune", "--method", "mixer"), ("ablations", "--groups", "mixer")]
)
def test_an_unknown_name_is_refused_before_anything_is_learnt(
    tmp_path: Path, command: str, option: str, value: str
) -> None:
    done = CliRunner().invoke(app, ["bench", command, option, value, "--out", str(tmp_path)])
    assert isinstance(done.exception, ConfigurationError)
    assert "mixer" in str(done.exception)
    assert "degre" in str(done.exception) or "beams" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_fewer_calls_buy_narrower_beams_for_more_requests(place: Path) -> None:
    plan = make_plan("mixed", "small", settings=Settings.model_validate(SETTINGS), logs=300, mined=40, test=30)
    run = SeedRun(place / "out" / "seed-0", plan, 0)
    usual = run.settings.mining
    assert (run.mining(1.0), run.learning(1.0)) == (usual, run.settings.generator)
    for share, all_of_them in ((0.1, False), (0.9, True)):
        mining = run.mining(share)
        assert mining == usual.model_copy(update=CHEAPER | {"requests": mining.requests})
        assert mining.requests > 40 * share
        assert (mining.requests == 40) is all_of_them
        assert run.spent(share) <= share * run.mining_calls
        assert run.learning(share).epochs == round(4 / math.sqrt(mining.requests / 40))
    searched = usual.model_copy(update={"sweeps": 0})
    assert cheaper(searched) == searched  # the paper's beams are not followed by a local search
