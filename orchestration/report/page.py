"""The report page: data in, one HTML file out that loads nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from degre_prod import __version__
from degre_prod.artefact import write_text
from orchestration.report.data import CurvePoint, ReportData

_TEMPLATE = "page.html.j2"


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot as a data URI, with what it shows in words."""

    uri: str
    title: str
    caption: str


def write_report(data: ReportData, path: Path) -> Path:
    """Write the page aside, rename it to `path`, and return `path`."""
    write_text(path, render(data))
    return path


def render(data: ReportData) -> str:
    """The page as text; every value that came from data is escaped."""
    return rendered(
        Path(__file__).with_name(_TEMPLATE),
        data=data,
        sections=sections(data),
        pictures=_pictures(data),
        latency=latency_table(data),
        settings=list(flat(data.settings)),
    )


def rendered(template: Path, **values: Any) -> str:
    """A template with values, escaped; it can include `style.html.j2`, and has `version` and the filter `number`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template(template.name).render(version=__version__, **values)


def sections(data: ReportData) -> list[tuple[str, str]]:
    """(anchor, title) of every section that has something to say, in page order."""
    latency = data.latency_ms
    every = [
        ("run", "The run", bool(data.stage_seconds or data.summary)),
        ("data", "Data", bool(data.counts or data.rejections)),
        ("value", "Value by method", bool(data.value_tables())),
        ("optimism", "Believed and true value", bool(data.optimism)),
        ("learning", "Learning curves", any(data.curves.values())),
        ("calibration", "Calibration", bool(data.calibration)),
        ("latency", "Latency", bool(latency.http or any(latency.stages.values()))),
        ("examples", "Served examples", bool(data.examples)),
        ("notes", "Notes", bool(data.notes)),
        ("settings", "Settings", bool(data.settings)),
    ]
    return [(anchor, title) for anchor, title, present in every if present]


def _pictures(data: ReportData) -> dict[str, list[Picture]]:
    """The plots of each section."""
    from orchestration.report import plots

    out: dict[str, list[Picture]] = {"run": [], "value": [], "learning": [], "calibration": [], "latency": []}
    if data.stage_seconds:
        total = sum(data.stage_seconds.values())
        out["run"].append(picture(plots.stage_times(data.stage_seconds), "Time by stage", f"{total:.0f} s in all."))
    for table in data.value_tables():
        caption = "Whiskers are 95 % intervals." if any(m.low is not None for m in table.methods) else ""
        out["value"].append(picture(plots.values_by_method(table), table.title or table.unit, caption))
    for name, points in data.curves.items():
        if points:
            out["learning"].append(picture(plots.learning_curve(points), name, _last(points[-1])))
    for bins in data.calibration:
        caption = "On the dotted line, what is predicted is what happens; below, how many examples each bin holds."
        out["calibration"].append(picture(plots.reliability(bins), bins.label, caption))
    times = data.latency_ms
    if times.http:
        out["latency"].append(picture(plots.latency_histogram(times.http), "Answers over HTTP", "How times spread."))
        caption = "How many answers arrive within a time."
        out["latency"].append(picture(plots.latency_share(times.http), "Share answered within a time", caption))
    if any(times.stages.values()):
        caption = "Box: the middle half and the median. Whiskers: 1st to 99th percentile."
        out["latency"].append(picture(plots.stage_latency(times.stages), "Time by stage of an answer", caption))
    return out


def picture(svg: str, title: str, caption: str) -> Picture:
    """A plot for the page."""
    return Picture("data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode(), title, caption)


def _last(point: CurvePoint) -> str:
    """The end of a curve in words."""
    held_out = "" if point.validation is None else f", validation {number(point.validation)}"
    return f"At the end: training {number(point.train)}{held_out}."


def latency_table(data: ReportData) -> list[tuple[str, int, list[float]]]:
    """(what, how many, [p50, p90, p99, largest] in ms) of the whole answer and of each stage."""
    import numpy as np

    rows = {"HTTP answer": data.latency_ms.http, **data.latency_ms.stages}
    return [
        (name, len(times), [float(v) for v in np.percentile(times, [50, 90, 99, 100])])
        for name, times in rows.items()
        if times
    ]


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted key, text)."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def number(value: Any) -> str:
    """Numbers for reading: thousands apart, four significant digits, no exponent where it can be helped."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)
