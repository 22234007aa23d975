"""`degre bench results`: Markdown tables and plots from the documents of the quality benchmark, so that no figure is typed.

The documents are kept beside the text, in docs/results/; what stands between the two marks of docs/results.md is written
anew each time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from degre_prod.artefact import write_json, write_text
from degre_prod.errors import DataError
from degre_prod.worlds.spec import SIZES, WORLDS
from orchestration.bench.quality_markdown import ablation_tables, curve_tables, tables, trivago_tables, tuning_table
from orchestration.bench.quality_plot import draw_curves, draw_worlds

START, END = "<!-- tables: written by `degre bench results` -->", "<!-- end of the tables -->"
KINDS: Final = ("quality", "tune", "ablations", "trivago")
CURVES: Final = "curves"  # what a quality.json with several shares of the calls is kept as


def bench_results(sources: Sequence[Path], docs: Path) -> dict[str, Any]:
    """Take over quality.json, tune.json, ablations.json and trivago.json of the folders `sources`, then rewrite the tables
    of docs/results.md from all that are kept. A quality.json with several shares of the calls is kept beside the one with
    the whole table, which may be of more seeds.

    Raises DataError for a folder without any of them, or when docs/results.md lacks the marks.
    """
    kept = docs / "results"
    for folder in sources:
        found = [kind for kind in KINDS if (folder / f"{kind}.json").is_file()]
        if not found:
            raise DataError(f"none of {', '.join(f'{kind}.json' for kind in KINDS)} is here", file=str(folder))
        for kind in found:
            document = _read(folder / f"{kind}.json")
            write_json(kept / f"{_name(kind, document)}.json", document)
    page = docs / "results.md"
    try:
        before, _, rest = page.read_text().partition(START)
    except OSError as error:
        raise DataError(f"cannot read the page the tables belong to: {error}", file=str(page)) from None
    _, marked, after = rest.partition(END)
    if not marked:
        raise DataError(f"the tables go between {START} and {END}; write both into the page", file=str(page))
    parts = []
    for size in SIZES:
        documents = _kept(kept, "quality", size)
        if documents:
            draw_worlds(documents, docs / "images" / f"results-{size}")
            parts += [f"## The {size} worlds", *tables(documents)]
    curves = [document for size in SIZES for document in _kept(kept, CURVES, size)]
    for document in curves:
        draw_curves(document, docs / "images" / f"curves-{document['size']}-{document['world']}")
    if curves:
        parts += ["## At equal evaluator calls", *(text for document in curves for text in curve_tables(document))]
    if (kept / "trivago.json").is_file():
        parts += ["## Real clicks: trivago", *trivago_tables(_read(kept / "trivago.json"))]
    for kind, title, write in (("tune", "Tuning", tuning_table), ("ablations", "Ablations", ablation_tables)):
        documents = [document for size in SIZES for document in _kept(kept, kind, size)]
        if documents:
            parts += [f"## {title}", *(text for document in documents for text in write(document))]
    write_text(page, before + START + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after)
    return {"page": str(page), "documents": sorted(file.stem for file in kept.glob("*.json"))}


def _name(kind: str, document: dict[str, Any]) -> str:
    if kind == "trivago":
        return kind
    if kind == "quality" and any(len(points) > 1 for points in document["curves"].values()):
        kind = CURVES
    return f"{kind}-{document['size']}-{document['world']}"


def _kept(folder: Path, kind: str, size: str) -> list[dict[str, Any]]:
    files = [folder / f"{kind}-{size}-{world}.json" for world in WORLDS]
    return [_read(file) for file in files if file.is_file()]


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise DataError(f"not a document of `degre bench`: {error}", file=str(file)) from None
