"""Tests of the docs: examples show the present output, and all commands and links are valid."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import cli
from tests import docs

_CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def console_text(page: str) -> str:
    """The console blocks of a page, with each command on one line."""
    blocks = re.findall(r"^```console\n(.*?)^```$", (docs.ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return "".join(blocks).replace("\\\n", "")


def command_lines(page: str) -> Iterator[list[str]]:
    """The arguments of each `lru-audit` command in the console blocks of a page."""
    for line in re.findall(r"^[$#] (.*lru-audit.*)$", console_text(page), re.MULTILINE):
        words: list[str] = []
        lexer = shlex.shlex(line.replace("2>&1", ""), posix=True, punctuation_chars=True)
        lexer.wordchars += "=:@*%,"
        for word in [*lexer, ";"]:
            if not set(word) <= set("|&;<>()"):
                words.append(word)
                continue
            if words[:1] == ["lru-audit"]:
                yield words[1:]
            words = []


@pytest.mark.parametrize("document", docs.DOCUMENTS)
def test_the_examples_print_what_the_docs_show(document: str) -> None:
    text = (docs.ROOT / document).read_text()
    assert docs.normalize(docs.regenerate(document)) == docs.normalize(text), "python -m tests.docs writes it anew"


@pytest.mark.parametrize("page", [page for page in docs.PAGES if any(command_lines(page))])
def test_what_a_reader_types_the_program_takes(page: str) -> None:
    for arguments in command_lines(page):
        cli.parser().parse_args(arguments)


@pytest.mark.parametrize("page", docs.PAGES)
def test_commands_in_the_text_are_those_of_the_program(page: str) -> None:
    commands = set(re.findall(r"^    (\w[\w-]+)(?: |$)", cli.parser().format_help(), re.MULTILINE))
    assert {"run", "fetch-drgn"} < commands
    mentioned_commands = re.findall(r"`lru-audit ([a-z-]+)", _CODE_BLOCK.sub("", (docs.ROOT / page).read_text()))
    assert set(mentioned_commands) <= commands | {"--help"}


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub derives from the headings of a page, and those that the page sets itself."""
    text = _CODE_BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    heading_anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return heading_anchors | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", docs.PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Links inside the project only; the network is not used."""
    for link in _LINK.findall(_CODE_BLOCK.sub("", (docs.ROOT / page).read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        destination = (docs.ROOT / page).parent / path if path else docs.ROOT / page
        assert destination.exists(), link
        assert not anchor or anchor in anchors(destination), link


def test_every_page_is_reached_from_the_readme() -> None:
    readme = _CODE_BLOCK.sub("", (docs.ROOT / "README.md").read_text())
    assert set(docs.PAGES) - {"README.md"} <= set(_LINK.findall(readme))
