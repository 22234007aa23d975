"""A night's page: gates with their figures and reasons, the time each step took, what was learnt from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import write_json, write_text

if TYPE_CHECKING:
    from orchestration.retrain.journal import Journal
    from orchestration.retrain.outcome import Outcome
    from orchestration.retrain.steps import Night

_TEMPLATE = "night.html.j2"
_HEAD = {"done": "A candidate passed every gate", "stopped": "A gate did not hold"}


def write_page(night: Night, journal: Journal, outcome: Outcome) -> Path:
    """`report.html` and `outcome.json` in the night's folder."""
    from orchestration.report.page import picture, rendered
    from orchestration.retrain.plot import timeline

    work = f"{sum(outcome.steps.values()):.0f} s of work. Pale: done before."
    page = rendered(
        Path(__file__).with_name(_TEMPLATE),
        title=f"Night {night.frozen.id}: {_HEAD[outcome.status].lower()}",
        dataset=night.schema.name,
        outcome=outcome,
        tiles=_tiles(night, outcome),
        history=_history(outcome.history),
        notes=night_notes(night, journal),
        picture=picture(timeline(journal.entries), "Steps", work),
    )
    write_text(night.folder / "report.html", page)
    write_json(night.folder / "outcome.json", outcome.to_json())
    return night.folder / "report.html"


def night_notes(night: Night, journal: Journal) -> list[str]:
    """What a reader should know beyond figures."""
    said = [reason for reasons in journal.decisions.values() for reason in reasons]
    champion = night.champion
    said.append(
        f"champion: {champion.bundle} ({champion.manifest_sha256[:12]})" if champion else "there was no champion"
    )
    left_out = night.run.settings.retrain.leave_out_days
    return said + ([f"left out on request: {', '.join(left_out)}"] if left_out else [])


def _tiles(night: Night, outcome: Outcome) -> list[tuple[str, Any]]:
    history = outcome.history
    return [
        ("outcome", outcome.status),
        ("gates that hold", f"{sum(g.passed for g in outcome.gates)} of {len(outcome.gates)}"),
        ("requests learnt from", history.get("requests")),
        ("of them new", history.get("new")),
        (
            "serves now",
            "the candidate" if outcome.activated else "the champion" if outcome.champion else "none of this run",
        ),
        ("files", len(night.frozen.partitions)),
    ]


def _history(history: dict[str, Any]) -> list[tuple[str, Any]]:
    """The history in words, moments readable."""
    if not history:
        return []
    rows = [("requests", history["requests"]), ("new since the champion", history["new"])]
    rows += [("unconfirmed lists, left out", history["unconfirmed"]), ("older requests, left out", history["older"])]
    rows += [(f"rejected: {rule}", count) for rule, count in history["rejected_by_rule"].items()]
    names = {"from_us": "first request", "new_from_us": "first new one", "validation_us": "validation from"}
    names |= {"heldout_us": "held out for the gates from", "to_us": "last request"}
    return rows + [(text, _moment(history[name])) for name, text in names.items()]


def _moment(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
