"""The whole path on one data set: features, evaluator, mining, generator, bundle, serving, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from degre_prod.artefact import write_text
from degre_prod.config import Settings
from degre_prod.errors import DataError
from orchestration.run import Run, create_run

REPLAYED = 600


@dataclass
class Clock:
    """Seconds by stage, said on stderr as they pass."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        print(f"▸ {name}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        yield
        self.told({name: round(time.perf_counter() - started, 2)})

    def told(self, seconds: dict[str, float]) -> None:
        """Take over the seconds of stages that are done."""
        for name, took in seconds.items():
            self.seconds[name] = took
            print(f"  {name}: {took:.1f} s", file=sys.stderr, flush=True)


def demo(out: Path, settings: Settings, *, data: Path | None, world: str, size: str, seed: int) -> dict[str, Any]:
    """Run every stage in the folder `out` and return the closing document; what is done already is not done again."""
    from orchestration import stages
    from orchestration.evaluate import evaluate
    from orchestration.replay import replay, to_http
    from orchestration.report.page import write_report
    from orchestration.summary import closing_document, report_data

    clock = Clock()
    with clock.stage("data"):
        dataset = prepare_data(out, data, world=world, size=size, seed=seed)
        run = create_run(out, dataset, settings)
        validation = validated(run)
    with ExitStack() as stack:
        with clock.stage("cluster"):
            stack.enter_context(stages.ray_cluster(run))
            launch = stack.enter_context(stages.group_ahead(run))
        with clock.stage("features"):
            stages.build_training_rows(run)
        with clock.stage("encoding"):
            stages.encode(run)
        clock.told(stages.learn(run, launch))
        with clock.stage("bundle"):
            stages.build_bundle(run)
        with clock.stage("evaluation"):
            evaluation = evaluate(run)
        with clock.stage("serving"):
            replayed = replay(run, REPLAYED)
            row, _ = replayed.examples[-1]
            body = to_http(row.request, explain=True).model_dump_json(
                exclude={"event_timestamp", "deadline_ms"}, exclude_defaults=True
            )
            write_text(run.folder / "request.json", body + "\n")
    with clock.stage("report"):
        created = datetime.now(UTC).isoformat(timespec="seconds")
        write_report(report_data(run, created, clock.seconds, validation, evaluation, replayed), run.report)
    return closing_document(run, clock.seconds, validation, evaluation, replayed)


def prepare_data(out: Path, data: Path | None, *, world: str, size: str, seed: int) -> Path:
    """The data set folder: simulated without `data`, converted from a published source, or `data` itself."""
    target = out / "data"
    if data is None:
        from degre_prod.worlds.simulate import simulate

        simulate(world, size, target, seed=seed)
        return target
    if not data.exists():
        raise DataError("no such file or folder; give a data set folder or a published source", file=str(data))
    if (data / "schema.yaml").is_file():
        return data
    if data.is_file():
        from degre_prod.datasets.trivago import convert as convert_trivago

        convert_trivago(data, target)
    else:
        from degre_prod.datasets.kuairand import convert as convert_kuairand

        convert_kuairand(data, target)
    return target


def validated(run: Run) -> dict[str, Any]:
    """Check the data set, write the accepted requests aside where some were rejected; the counts."""
    import pyarrow.parquet as pq

    from degre_prod.artefact import written_aside
    from degre_prod.encoding.splits import refuse_empty
    from degre_prod.schema import load_schema
    from degre_prod.validation import LOG, accepted_log, validate_dataset

    now_us, share = time.time_ns() // 1000, run.settings.data.max_rejected_share
    report = validate_dataset(run.dataset, now_us=now_us, max_rejected_share=share)
    refuse_empty(report.coverage.requests_by_split)  # before anything long begins
    if report.log.rejected:
        accepted = accepted_log(run.dataset / LOG, load_schema(run.dataset), now_us=now_us, max_rejected_share=share)
        with written_aside(run.accepted) as aside:
            pq.write_table(accepted, aside)
    else:
        run.accepted.unlink(missing_ok=True)
    return report.model_dump(mode="json")
