"""What a demo run has to say: the closing JSON document and the facts of the report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from degre_prod.schema import DataSchema, load_schema
from orchestration.report.data import (
    CurvePoint,
    Example,
    ExampleItem,
    Latency,
    MethodValue,
    Optimism,
    Reliability,
    ReportData,
    ValueTable,
)
from orchestration.run import Run

if TYPE_CHECKING:
    from degre_prod.rows import TrainingRow
    from orchestration.replay import Replay
    from serving.protocol import RerankResponse

NAMES = {
    "input_order": "input order",
    "pointwise": "pointwise sort",
    "last_interacted_first": "last interacted first",
    "generator": "generator (served)",
    "beam": "beam on the evaluator",
}
SECONDARY_NOTE = {
    "mrr": "Agreement with logged, position-biased feedback: a sanity check, no claim about lookahead.",
    "believed": "The evaluator that taught the generator grades it here: self-grading, for orientation only.",
}


def closing_document(
    run: Run, seconds: dict[str, float], validation: dict[str, Any], evaluation: dict[str, Any], replayed: Replay
) -> dict[str, Any]:
    """The last line of `degre demo`."""
    measures, log = evaluation["measures"], validation["log"]
    document: dict[str, Any] = {
        "dataset": evaluation.get("world", validation["dataset"]),
        "requests": log["requests"],
        "rejected": log["rejected"] + _conversion(run).get("rejected", 0),
        "test_requests": evaluation["requests"],
        "stage_seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 1),
        "http_equals_offline": replayed.http_equals_offline,
        "replayed_requests": replayed.requests,
        "latency_ms": {
            name: round(float(np.percentile(replayed.http_ms, q)), 2) for name, q in (("p50", 50), ("p99", 99))
        },
    }
    if "true_value" in measures:
        document["true_value"] = {name: round(v["mean"], 4) for name, v in measures["true_value"].items()} | {
            "optimum_or_reference": 1.0
        }
        document["reference"] = evaluation["reference"]
    else:
        shown = measures["mrr"]["input_order"]
        document["mrr"] = {"shown": round(shown["mean"], 4)} | {
            name: round(v["mean"], 4) for name, v in measures["mrr"].items() if name != "input_order"
        }
    return document | {"data": str(run.dataset), "bundle": str(run.bundle), "report": str(run.report)}


def report_data(
    run: Run,
    created: str,
    seconds: dict[str, float],
    validation: dict[str, Any],
    evaluation: dict[str, Any],
    replayed: Replay,
) -> ReportData:
    """Everything the page shows."""
    schema = load_schema(run.dataset)
    log = validation["log"]
    measures = dict(evaluation["measures"])
    main = "true_value" if "true_value" in measures else "mrr"
    tables = {name: _table(name, measures[name], evaluation) for name in measures}
    http = sorted(replayed.http_ms)
    name = evaluation.get("world", schema.name)
    generator, pointwise = (measures[main][m]["mean"] for m in ("generator", "pointwise"))
    return ReportData(
        title=f"DeGRe on {name}",
        dataset=name,
        created=created,
        summary=(
            (tables[main].unit, round(generator, 4)),
            ("relative to the pointwise sort", f"{generator / pointwise:.2f}×"),
            ("HTTP answers equal to offline", f"{replayed.equal} of {replayed.requests}"),
            ("answer over HTTP, median", f"{http[len(http) // 2]:.1f} ms"),
            ("whole run", f"{sum(seconds.values()):.0f} s"),
        ),
        counts={
            "logged requests": log["requests"],
            "accepted": log["accepted"],
            "users in the log": log["users"],
            "items in the log": log["items"],
            "test requests": evaluation["requests"],
            "test lists without a positive": f"{evaluation['without_positive']:.1%}",
            "slots L": schema.list_length,
            "most candidates": schema.max_candidates,
            "first request": log["first_request"],
            "last request": log["last_request"],
        },
        rejections={**log["rejected_by_rule"], **_conversion(run).get("rejected_by_rule", {})},
        stage_seconds=seconds,
        curves=_curves(run),
        calibration=tuple(Reliability(**bins) for bins in evaluation["calibration"]),
        values=tables.pop(main),
        values_by_metric=tuple(tables.values()),
        optimism=tuple(
            Optimism(name=NAMES[method], believed=v["believed"], true=v["true"])
            for method, v in evaluation.get("optimism", {}).items()
        ),
        latency_ms=Latency(
            http=replayed.http_ms,
            stages=replayed.stages_ms,
            note="One connection, a log replayed in order of time on the machine that served it; deadline 5 s.",
        ),
        examples=tuple(_example(schema, row, answer) for row, answer in replayed.examples),
        notes=_notes(evaluation, replayed),
        settings=run.settings.model_dump(mode="json"),
    )


def _table(measure: str, methods: dict[str, Any], evaluation: dict[str, Any]) -> ValueTable:
    values = tuple(
        MethodValue(
            name=label,
            mean=v["mean"],
            low=_number(v["low"]),
            high=_number(v["high"]),
            note="the teacher, not a rival: far too slow to serve" if name == "beam" else "",
            highlight=name == "generator",
        )
        for name, label in NAMES.items()
        if (v := methods.get(name)) and v["count"]
    )
    if measure == "true_value":
        return ValueTable(
            title="True value",
            unit="true value as a share of the reference",
            methods=values,
            note=f"Expected clicks over the reference ({evaluation['reference']}, "
            f"{evaluation['reference_clicks']:.3f} clicks a list on average).",
            share_of_reference=True,
        )
    titles = {
        "mrr": ("Reciprocal rank of the first click", "MRR"),
        "believed": ("What the evaluator believes", "believed utility / mean logged utility"),
    }
    title, unit = titles[measure]
    return ValueTable(title=title, unit=unit, methods=values, note=SECONDARY_NOTE[measure])


def _notes(evaluation: dict[str, Any], replayed: Replay) -> tuple[str, ...]:
    notes = [
        f"Intervals are 95 % normal intervals over {evaluation['requests']} test requests; one training seed.",
        "Lists without a positive are left out of reciprocal ranks; their share is under Data.",
    ]
    if replayed.degraded:
        counted = ", ".join(f"{name} {count}" for name, count in sorted(replayed.degraded.items()))
        notes.append(f"Replayed answers that flagged something: {counted}.")
    return tuple(notes)


def _example(schema: DataSchema, row: TrainingRow, answer: RerankResponse) -> Example:
    rank = {item: c for c, item in enumerate(row.request.candidate_ids)}
    clicked = {row.request.candidate_ids[c] for c in row.shown_T[row.feedback_OT[0] > 0]}
    objective = schema.objectives[0].name

    def details(c: int, item: int | str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for f in schema.item.features:
            value = row.items.values[f.name][c]
            if f.kind == "numeric" and len(out) < 5:
                out[f.name] = None if np.isnan(value) else round(float(value), 3)
        return out | {objective: "yes" if item in clicked else ""}

    return Example(
        request_id=row.request.request_id,
        user_id=row.request.user_id,
        note=f"source {answer.source}" + (f", {', '.join(answer.degraded)}" if answer.degraded else ""),
        items=tuple(
            ExampleItem(
                position=i.position + 1,
                id=i.id,
                margin=i.margin,
                upstream_rank=rank[i.id] + 1,
                details=details(rank[i.id], i.id),
            )
            for i in answer.items
        ),
        input_order=tuple(row.request.candidate_ids),
    )


def _curves(run: Run) -> dict[str, tuple[CurvePoint, ...]]:
    out: dict[str, tuple[CurvePoint, ...]] = {}
    for folder in (run.evaluator, run.generator):
        for name, records in json.loads((folder / "curves.json").read_text()).items():
            out[name] = tuple(
                CurvePoint(step=r["epoch"] + 1, train=r["train"], validation=r["validation"]) for r in records
            )
    return out


def _conversion(run: Run) -> dict[str, Any]:
    file = run.dataset / "conversion.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
