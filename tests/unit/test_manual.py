"""The manual: generated pages equal the code, it builds without a warning, fetches nothing, and forgets no page and no alert."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from degre_prod.config import Settings, valid_keys
from orchestration.manual.pages import PAGES, write_pages

REPOSITORY = Path(__file__).parents[2]
QUIET = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
DOCS = REPOSITORY / "docs"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def alerts() -> list[str]:
    rules = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "alerts.yml").read_text())
    return [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_says_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run `make docs`"


def test_every_key_operation_and_command_is_in_its_page(tmp_path: Path) -> None:
    write_pages(tmp_path)
    settings, commands, http = ((tmp_path / name).read_text() for name in PAGES)
    assert all(f"| `{key}` |" in settings for key in valid_keys(Settings))
    assert "## `degre demo`" in commands
    assert "### `degre rollout rollback`" in commands
    assert "```sh\ndegre mine runs/mine\n```" in commands
    assert "…" not in re.findall(r"^\* \[`.*$", commands, re.MULTILINE)[0]
    assert "### POST /v1/rerank" in http
    assert "[Candidate](#candidate)" in http


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manual as `make docs` builds it; a warning (a dead link or anchor, a page outside the navigation) is an error."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False, env=QUIET)
    assert done.returncode == 0, done.stderr
    return site


def test_the_manual_builds_without_a_warning_and_fetches_nothing(built: Path) -> None:
    pages = list(built.rglob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in DOCS.glob("*.md")}
    for page in pages:
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:|//)", text)
        fetched += re.findall(
            r"<link\b(?=[^>]*rel=\"?(?:stylesheet|preconnect|preload|icon))[^>]*href=\"?(https?:|//)", text
        )
        assert not fetched, page.name
    for style in built.rglob("*.css"):
        assert not re.search(r"url\(\"?(https?:|//)|@import", style.read_text()), style.name


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[one](nowhere.md) [two](#nowhere)\n")
    settings = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    settings = {key: settings[key] for key in ("site_name", "validation", "markdown_extensions")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, env=QUIET)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
    assert "#nowhere" in done.stderr


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in LINK.findall((REPOSITORY / "README.md").read_text()):
        if not target.startswith(("http", "#")):
            path, _, anchor = target.partition("#")
            assert (REPOSITORY / path).exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", (REPOSITORY / path).read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}, target


def test_each_alert_has_its_section_in_the_runbook() -> None:
    sections = re.findall(r"^### (Degre\w+)$", (DOCS / "runbook.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(alerts())
