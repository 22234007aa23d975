"""The report page: complete, self-contained, escaped, and without empty sections."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestration.report import plots
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
from orchestration.report.page import flat, number, render, sections, write_report

EVIL = '<script>alert("x")</script> & $\\frac{1}{2}$'
SECTIONS = {
    "run",
    "data",
    "value",
    "optimism",
    "learning",
    "calibration",
    "latency",
    "examples",
    "notes",
    "settings",
}


class Page(HTMLParser):
    """What a browser would see: anchors, links, images, tags, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        elif tag == "img":
            self.images.append(found["src"])
        self.loads += [found[name] for name in ("src", "srcset", "data", "action") if name in found]
        if tag == "link":
            self.loads.append(found.get("href", ""))

    def handle_data(self, data: str) -> None:
        self.text += data


def report(**changes: Any) -> ReportData:
    items = tuple(
        ExampleItem(
            position=i + 1, id=100 + i, margin=0.5 * i, upstream_rank=4 - i, details={"hook": i == 0, "price": 1.5}
        )
        for i in range(3)
    )
    full: dict[str, Any] = {
        "title": "A run",
        "dataset": "simulated_small",
        "created": "2026-01-01T00:00:00Z",
        "summary": (("Requests", 12345), ("Share", 0.832)),
        "counts": {"requests": 33000},
        "rejections": {"NaN in a score": 2, "duplicate request": 1},
        "stage_seconds": {"mining": 12.0, "generator": 140.5},
        "curves": {"Generator": tuple(CurvePoint(step=i, train=1 / i, validation=1.1 / i) for i in range(1, 5))},
        "calibration": (Reliability(label="Click", predicted=(0.1, 0.3), observed=(0.12, 0.28), count=(900, 50)),),
        "values": ValueTable(
            unit="share of the reference",
            share_of_reference=True,
            methods=(
                MethodValue(name="input order", mean=0.47, note="as it came"),
                MethodValue(name="generator", mean=0.832, low=0.82, high=0.844, highlight=True),
            ),
        ),
        "values_by_metric": (ValueTable(title="MRR", unit="MRR", methods=(MethodValue(name="shown", mean=0.451),)),),
        "optimism": (Optimism(name="generator", believed=2.3, true=1.9),),
        "latency_ms": Latency(http=tuple(3 + i / 50 for i in range(100)), stages={"decode": (0.8, 0.9, 0.0)}),
        "examples": (Example(request_id="r1", user_id="u1", note="ok", items=items, input_order=(103, 102, 101, 100)),),
        "notes": ("Simulated.",),
        "settings": {"serving": {"port": 8000, "tokens": []}, "redis": {"url": None}},
    }
    return ReportData(**{**full, **changes})


def test_full_page_has_every_section_and_links_to_each() -> None:
    page = Page(render(report()))
    assert set(page.ids) == SECTIONS
    assert sorted(page.links) == sorted(f"#{anchor}" for anchor in SECTIONS)
    assert len(page.images) == 8
    for said in (
        "12,345",
        "NaN in a score",
        "Rejected rows (3)",
        "0.820 – 0.844",
        "as it came",
        "+0.400",
        "serving.port",
    ):
        assert said in page.text


def test_page_loads_nothing_from_outside() -> None:
    text = render(report())
    page = Page(text)
    assert page.loads == page.images
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.images)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none'" in text


def test_pictures_are_drawings_with_nothing_foreign_in_them() -> None:
    for source in Page(render(report())).images:
        root = ET.fromstring(base64.b64decode(source.split(",", 1)[1]))
        assert root.tag.endswith("svg")
        for node in root.iter():
            links = [value for name, value in node.attrib.items() if name.endswith("href")]
            assert all(link.startswith("#") for link in links)


def test_text_from_data_is_escaped() -> None:
    item = ExampleItem(position=1, id=EVIL, details={EVIL: EVIL})
    text = render(
        report(
            title=EVIL,
            dataset=EVIL,
            summary=((EVIL, EVIL),),
            counts={EVIL: EVIL},
            rejections={EVIL: 1},
            stage_seconds={EVIL: 1.0},
            curves={EVIL: (CurvePoint(step=1, train=1.0),)},
            values=ValueTable(unit=EVIL, title=EVIL, methods=(MethodValue(name=EVIL, mean=1.0, note=EVIL),)),
            latency_ms=Latency(http=(1.0,), stages={EVIL: (1.0,)}, note=EVIL),
            examples=(Example(request_id=EVIL, user_id=EVIL, note=EVIL, items=(item,), input_order=(EVIL,)),),
            notes=(EVIL,),
            settings={EVIL: {EVIL: EVIL}},
        )
    )
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 20
    assert EVIL in Page(text).text


def test_what_is_empty_is_left_out() -> None:
    bare = ReportData(title="Bare", dataset="none", created="2026-01-01T00:00:00Z")
    page = Page(render(bare))
    assert (page.ids, page.links, page.images) == ([], [], [])
    assert sections(bare) == []
    for field, anchor in (
        ("optimism", "optimism"),
        ("examples", "examples"),
        ("curves", "learning"),
        ("calibration", "calibration"),
    ):
        assert set(Page(render(report(**{field: type(getattr(report(), field))()}))).ids) == SECTIONS - {anchor}
    assert "No row was rejected" in render(report(rejections={}))


def test_report_is_written_whole_and_round_trips(tmp_path: Path) -> None:
    data = report()
    assert ReportData.model_validate_json(data.model_dump_json()) == data
    path = write_report(data, tmp_path / "out" / "report.html")
    assert path.read_text() == render(data), "same data, same bytes"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(ValidationError, match="one value a bin"):
        Reliability(label="x", predicted=(0.1,), observed=(), count=(1,))


def test_plots_stand_extreme_data() -> None:
    drawings = [
        plots.stage_times({"a": 0.0}),
        plots.latency_histogram([2.0]),
        plots.latency_share([2.0, 2.0]),
        plots.stage_latency({"a": [0.0], "b": []}),
        plots.reliability(Reliability(label="none", predicted=(), observed=(), count=())),
        plots.reliability(Reliability(label="zero", predicted=(0.0,), observed=(0.0,), count=(0,))),
        plots.learning_curve([CurvePoint(step=0.5, train=1.0)]),
    ]
    assert all(ET.fromstring(svg).tag.endswith("svg") for svg in drawings)


def test_numbers_are_readable() -> None:
    shown = [number(value) for value in (1234567, 0.83219, 12345.6, True, None, "text", 1.0)]
    assert shown == ["1,234,567", "0.8322", "12,346", "yes", "–", "text", "1"]
    assert list(flat({"a": {"b": 1, "c": None}, "d": [1]})) == [("a.b", "1"), ("a.c", "none"), ("d", "[1]")]


def test_importing_the_page_writer_does_not_load_matplotlib() -> None:
    code = "import sys, orchestration.report, orchestration.report.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
