"""docs/cli.md, from the commands themselves."""

from __future__ import annotations

import re
from typing import Any

_INTRODUCTION = """\
# Command line

Made from the commands by `make docs`; `degre COMMAND --help` says the same. Every command ends with where its results are; `--json`
prints one document as the last line of standard output, and everything else goes to standard error. Exit codes: 0, 2 for an error (one
line says which), 3 when a gate or a rollout said no, 130 when interrupted: the same line then goes on where it was.
"""
_EXAMPLE = re.compile(r"^Example: (.*)$", re.MULTILINE)
_LISTED = re.compile(r"^\* `([\w-]+)`: .*$", re.MULTILINE)
_HELP = re.compile(r"^\* `--help`: .*\n", re.MULTILINE)
_NOTHING = re.compile(r"^\*\*Options\*\*:\n\n(?=\n|#|\*\*|\Z)", re.MULTILINE)


def cli_page() -> str:
    """The page as Markdown: a heading for each command, what it takes, an example."""
    import typer
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from orchestration.cli import app

    root: Any = get_command(app)
    text = get_docs_for_click(obj=root, ctx=typer.Context(root, info_name="degre"), name="degre")
    summaries = _summaries(root, "degre")
    parts = re.split(r"^(#+ `degre[^`]*`)$", text, flags=re.MULTILINE)
    lines = [_INTRODUCTION]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        name = title.split("`")[1]
        lines.append("" if name == "degre" else f"{title}\n")
        lines.append(_tidy(body, name, summaries))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _tidy(body: str, name: str, summaries: dict[str, str]) -> str:
    """Examples as blocks that a test can read, whole summaries in lists of commands, no --help."""
    body = _EXAMPLE.sub(r"```sh\n\1\n```", body)
    body = _LISTED.sub(lambda found: _listed(found[1], f"{name} {found[1]}", summaries) or found[0], body)
    return _NOTHING.sub("", _HELP.sub("", body)).strip("\n") + "\n"


def _listed(word: str, name: str, summaries: dict[str, str]) -> str | None:
    summary = summaries.get(name)
    return None if summary is None else f"* [`{word}`](#{name.replace(' ', '-')}): {summary}"


def _summaries(command: Any, name: str) -> dict[str, str]:
    """First line of the help of every command below, by its whole name."""
    out = {name: (command.help or "").strip().split("\n")[0]}
    for word, below in getattr(command, "commands", {}).items():
        out |= _summaries(below, f"{name} {word}")
    return out
