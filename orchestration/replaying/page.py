"""The page of a replay: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from degre_prod.artefact import write_text
from orchestration.report.page import Picture, picture, rendered

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def write_page(document: dict[str, Any], path: Path) -> Path:
    """Write the page aside, rename it to `path`, and return `path`."""
    write_text(path, render(document))
    return path


def render(document: dict[str, Any]) -> str:
    """The page of what `summarise` found, as text."""
    segments = {name: list(rows) for name, rows in groupby(document["segments"], lambda row: row["column"])}
    return rendered(
        _TEMPLATE,
        title=f"Replay of {document['bundle']}",
        data=document,
        tiles=_tiles(document),
        segments=segments,
        pictures=_pictures(document, segments),
        notes=_notes(document),
    )


def _tiles(document: dict[str, Any]) -> list[tuple[str, Any]]:
    agreement, difference = document["agreement"], document["judged"]["difference"]
    tiles = [
        ("requests", document["requests"]),
        ("same list", _percent(agreement["same_list"]["mean"])),
        ("shown items kept", _percent(agreement["overlap"]["mean"])),
        ("rank correlation", agreement["rank_correlation"]["mean"]),
    ]
    return tiles if difference["mean"] is None else [*tiles, ("judged difference", f"{difference['mean']:+.4f}")]


def _pictures(document: dict[str, Any], segments: dict[str, list[dict[str, Any]]]) -> dict[str, list[Picture]]:
    from orchestration.replaying import plots

    judged = document["judged"]["difference"]["mean"] is not None
    same = "Share of the requests whose slot holds the same item in both lists."
    out = {"agreement": [picture(plots.slots(document["agreement"]["by_slot"]), "Same item by slot", same)]}
    whiskers = "95 % intervals; grey ones hold 0."
    out["segments"] = [
        picture(plots.hours(rows), "By hour", "With 95 % intervals.")
        if name == "hour"
        else picture(plots.differences(rows), f"By {name}", whiskers)
        for name, rows in segments.items()
        if judged
    ]
    items = [*document["items"]["promoted"], *document["items"]["demoted"][::-1]]
    out["items"] = (
        [picture(plots.moves(items, "appearances, bundle less shown"), "Items that rise and fall most", "")]
        if items
        else []
    )
    return out


def _notes(document: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the figures right."""
    notes = [
        f"{document['unconfirmed']:,} lists whose showing nothing confirmed and {document['rejected']:,} rows that break the "
        "log's contract were left out.",
        "Each request is answered with the features of its own moment, as many slots as were shown, and the constraints it came "
        "with.",
        "Feedback on what was shown says nothing of a list that was not: the judge's values are predictions, and it may have "
        "learnt from these very requests, which favours what was shown.",
    ]
    if document["trained_until"] > document["from"]:
        notes.append(f"The bundle was trained on requests up to {document['trained_until']}, some of them among these.")
    if document["without_list"]:
        notes.append(f"For {document['without_list']:,} requests the bundle has no list under their constraints.")
    if document["judge"] is None:
        notes.append("No judge lies in this run, and nothing to train one on: there are no judged values.")
    return notes


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
