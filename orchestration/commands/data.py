"""`degre data`: validate, convert, simulate."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from degre_prod.coverage import Coverage
    from degre_prod.validation import DatasetReport

HALF = 0.5
app = typer.Typer(help="Bring logs and feature tables into the contract, and check them.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="print one JSON document as the last line")]
Config = Annotated[Path | None, typer.Option(help="configuration file (YAML)")]
Destination = Annotated[Path, typer.Argument(help="data set folder to write: new, empty, or written so before")]


class Source(StrEnum):
    """Published data sets with a converter."""

    trivago = "trivago"
    kuairand = "kuairand"


@app.command()
def validate(
    dataset: Annotated[Path, typer.Argument(help="data set folder: schema.yaml and its parquet files")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check a data set; rejected requests go to rejected.parquet in its folder, each with its reason.

    Example: degre data validate data/mine
    """
    report = _validate(dataset, config)
    if as_json:
        typer.echo(report.model_dump_json())
    else:
        _print_report(report, dataset)


@app.command()
def convert(
    source: Annotated[Source, typer.Argument(help="which published data set")],
    src: Annotated[
        Path, typer.Argument(help="trivago: events.parquet or train.csv; kuairand: the folder of its files")
    ],
    dst: Destination,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Convert a published data set as its owner ships it, then check the result.

    Source rows that cannot be used go to conversion_rejected.parquet, the counts to conversion.json.

    Example: degre data convert trivago events.parquet data/trivago
    """
    if source is Source.trivago:
        from degre_prod.datasets.trivago import convert as run
    else:
        from degre_prod.datasets.kuairand import convert as run
    with _steps(f"convert {source}") as say:
        document = run(src, dst, say=say)
        say("validating")
        report = _validate(dst, config)
    _finish(dst, {"conversion": document}, report, as_json)


@app.command()
def simulate(
    world: Annotated[str, typer.Argument(help="none, substitutes, exit, hooks, mixed or saturated")],
    dst: Destination,
    size: Annotated[
        str, typer.Option(help="small (8 candidates, 4 slots) or large (50 candidates, 10 slots)")
    ] = "large",
    seed: Annotated[int, typer.Option(help="the same seed gives the same data set", min=0)] = 0,
    train: Annotated[
        int | None, typer.Option(help="training requests; default 40,000 small, 30,000 large", min=1)
    ] = None,
    validation: Annotated[int, typer.Option(help="validation requests", min=0)] = 2000,
    test: Annotated[int, typer.Option(help="test requests", min=0)] = 1000,
    tau: Annotated[
        float, typer.Option(help="temperature of the logging policy; .1 shows hardly more than one order")
    ] = 0.5,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write the logs of a simulated world whose true list value is known (and kept out of the columns).

    Example: degre data simulate mixed data/mixed --size small
    """
    from degre_prod.worlds.simulate import simulate as run

    with _steps(f"simulate {world}") as say:
        say("drawing users, lists and feedback")
        document = run(world, size, dst, seed=seed, train=train, validation=validation, test=test, tau=tau)
        say("validating")
        report = _validate(dst, config)
    _finish(dst, {"simulation": document}, report, as_json)


def _validate(dataset: Path, config: Path | None) -> DatasetReport:
    from degre_prod.config import load_settings
    from degre_prod.validation import validate_dataset

    share = load_settings(config).data.max_rejected_share
    return validate_dataset(
        dataset,
        now_us=time.time_ns() // 1000,
        max_rejected_share=share,
        write_rejected=os.access(dataset, os.W_OK),  # a data set may be mounted for reading only
    )


def _finish(dst: Path, made: dict[str, Any], report: DatasetReport, as_json: bool) -> None:
    if as_json:
        document = {"dataset": str(dst), **made, "validation": report.model_dump(mode="json")}
        typer.echo(json.dumps(document))
        return
    for document in made.values():
        for name, value in document.items():
            if name != "sources":
                typer.echo(f"{name.replace('_', ' ')}: {value}")
    _print_report(report, dst)


def _print_report(report: DatasetReport, dataset: Path) -> None:
    from rich.console import Console

    log, console = report.log, Console()
    console.print(f"{report.dataset} ({dataset})", soft_wrap=True, highlight=False)
    found = _table("", "rows", "ids", "from", "to")
    found.add_row("accepted", f"{log.accepted:,}", f"{log.users:,} users", *_span(log.first_request, log.last_request))
    for role, rows in (("user", report.user_features), ("item", report.item_features)):
        found.add_row(f"{role} rows", f"{rows.rows:,}", f"{rows.entities:,} {role}s", *_span(rows.first, rows.last))
    found.add_row("rejected", f"{log.rejected:,}", f"{log.rejected_share:.2%}")
    console.print(found)
    if log.rejected:
        rules = _table("rule", "rows", "first row", "column")
        for rule, count in log.rejected_by_rule.items():
            first = log.first_by_rule[rule]
            rules.add_row(rule, f"{count:,}", str(first.row), first.column)
        console.print(rules)
        aside = dataset / "rejected.parquet"
        where = aside if os.access(dataset, os.W_OK) else "not written, the folder is not writable"
        console.print(f"Rejected rows and reasons: {where}", soft_wrap=True)
    if log.ignored_columns:
        console.print(f"Columns outside the contract, ignored: {', '.join(log.ignored_columns)}", soft_wrap=True)
    _print_coverage(report.coverage, console)


def _print_coverage(found: Coverage, console: Console) -> None:
    splits = ", ".join(f"{name} {count:,}" for name, count in found.requests_by_split.items())
    console.print(f"Requests by split: {splits}", soft_wrap=True, highlight=False)
    if empty := [name for name, count in found.requests_by_split.items() if not count]:
        console.print(
            f"No request in split {', '.join(empty)}: training will refuse this. Set validation_start and test_start inside the "
            "log's time span, or leave both out.",
            soft_wrap=True,
        )
    for role, share in (("users", found.known_users), ("candidates", found.known_candidates)):
        console.print(
            f"{role} with a feature row by the time of the request: {share:.1%}", soft_wrap=True, highlight=False
        )
        if share < HALF:
            console.print(
                f"Most {role} are unknown when they are asked for, and nothing can be learnt of them: do their ids agree, and do "
                "event_timestamp and created_timestamp say when the values became known?",
                soft_wrap=True,
            )


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right" if heading == "rows" else "left")
    return table


def _span(first: str | None, last: str | None) -> tuple[str, str]:
    return _short(first), _short(last)


def _short(moment: str | None) -> str:
    return "" if moment is None else moment[:16].replace("T", " ")


@contextmanager
def _steps(title: str) -> Iterator[Callable[[str], None]]:
    """A spinner with the step at hand, on stderr."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)
        yield lambda step: progress.update(task, description=f"{title}: {step}")
