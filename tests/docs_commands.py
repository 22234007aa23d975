"""The commands in README and manual: blocks of shell, the single commands in them, and what a command line would say to them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.main import get_command

from orchestration import cli

REPOSITORY = Path(__file__).parents[1]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
ROOT: Any = get_command(cli.app)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONTROL = {"\n", ";", "&", "&&", "|", "||"}


@dataclass(frozen=True)
class Block:
    """A fenced block: page, language (`sh`, `python`, nothing, …), text."""

    page: str
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One simple command of a shell block, without the variables set before it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(*languages: str) -> list[Block]:
    """Fenced blocks of these languages, of every page."""
    found = [Block(page.name, *match) for page in PAGES for match in FENCE.findall(page.read_text())]
    return [block for block in found if block.language in languages]


def commands() -> list[Command]:
    """Every simple command of every `sh` block."""
    return [Command(block.page, words) for block in blocks("sh") for words in simple_commands(block.text)]


def simple_commands(text: str) -> Iterator[tuple[str, ...]]:
    """Words of each simple command; substitutions `$(…)` count as commands of their own."""
    text = re.sub(r"(^|\s)#[^\n]*", r"\1", text.replace("\\\n", " "))
    for inner in re.findall(r"\$\(([^()]*)\)", text):
        yield from simple_commands(inner)
    text = re.sub(r"\$\([^()]*\)", "SUBSTITUTED", text)
    text = re.sub(r"\s\d?>{1,2}\s*&?\S+", "", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if not set(word) <= set("".join(CONTROL)):
            words.append(word)
            continue
        while words and (words[0] == "export" or re.fullmatch(r"\w+=.*", words[0], re.DOTALL)):
            del words[0]
        if words:
            yield tuple(words)
        words = []


def degre_words(words: tuple[str, ...]) -> tuple[str, ...] | None:
    """What follows `degre` in a command that runs it, also as a Ray job or in a container; None for others."""
    if words[0] in ("degre", ".venv/bin/degre"):
        return words[1:]
    if words[:3] == ("ray", "job", "submit") and "--" in words:
        return degre_words(words[words.index("--") + 1 :])
    if words[:2] == ("docker", "compose") and {"exec", "run"} & set(words) and "degre" in words:
        return degre_words(words[words.index("degre") :])
    return None


def resolve(words: tuple[str, ...]) -> tuple[tuple[str, ...], Any, list[str]]:
    """(path of the command, the command, its own words); fails on a command that there is not."""
    command, path, rest = ROOT, (), list(words)
    while hasattr(command, "commands"):
        assert rest, f"degre {' '.join(path)}: which command?"
        assert rest[0] in command.commands, f"degre {' '.join(path)}: no command {rest[0]!r}"
        command, path = command.commands[rest[0]], (*path, rest.pop(0))
    return path, command, rest


def problem(words: tuple[str, ...]) -> str | None:
    """What the real parser has to say against `degre WORDS`; None when it takes them. Files need not be there."""
    from typer._click.exceptions import ClickException

    try:
        path, command, rest = resolve(words)
    except AssertionError as error:
        return str(error)
    try:
        with _files_need_not_exist(command):
            context = command.make_context(" ".join(path), list(rest))
    except ClickException as error:
        return f"{' '.join(path)}: {error.format_message()}"
    if path == ("submit",) and (job := context.params["words"]):
        return problem(tuple(job))
    return None


class _files_need_not_exist:  # noqa: N801 - a context manager
    """Paths are only named in the docs."""

    def __init__(self, command: Any) -> None:
        self.infos = [p.type_descriptor.parameter_info for p in command.params if hasattr(p, "type_descriptor")]

    def __enter__(self) -> None:
        self.before = [getattr(info, "exists", None) for info in self.infos]
        for info in self.infos:
            if info is not None:
                info.exists = False

    def __exit__(self, *_: object) -> None:
        for info, exists in zip(self.infos, self.before, strict=True):
            if info is not None:
                info.exists = exists
