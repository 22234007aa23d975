"""All generated pages. They are committed, so that they can be read without a build; a test holds them to the code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from degre_prod.artefact import write_text
from orchestration.manual.cli import cli_page
from orchestration.manual.configuration import configuration_page
from orchestration.manual.http import http_page

PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration_page,
    "cli.md": cli_page,
    "http-reference.md": http_page,
}


def write_pages(folder: Path) -> list[Path]:
    """Write each page into `folder`, aside and then renamed; returns their paths."""
    out = []
    for name, page in PAGES.items():
        write_text(folder / name, page())
        out.append(folder / name)
    return out
