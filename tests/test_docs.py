"""The docs show what their commands print, and every command and link in them is one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import cli
from tests import docs

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def console(page: str) -> str:
    """The console blocks of a page, a command on one line."""
    blocks = re.findall(r"^```console\n(.*?)^```$", (docs.ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return "".join(blocks).replace("\\\n", "")


def typed(page: str) -> Iterator[list[str]]:
    """The arguments of each `lru-audit` that a reader would type."""
    for line in re.findall(r"^[$#] (.*lru-audit.*)$", console(page), re.MULTILINE):
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
    written = (docs.ROOT / document).read_text()
    assert docs.steady(docs.now(document)) == docs.steady(written), "python -m tests.docs writes it anew"


@pytest.mark.parametrize("page", [page for page in docs.PAGES if any(typed(page))])
def test_what_a_reader_types_the_program_takes(page: str) -> None:
    for arguments in typed(page):
        cli.parser().parse_args(arguments)


@pytest.mark.parametrize("page", docs.PAGES)
def test_commands_in_the_text_are_those_of_the_program(page: str) -> None:
    known = set(re.findall(r"^    (\w[\w-]+)(?: |$)", cli.parser().format_help(), re.MULTILINE))
    assert {"run", "fetch-drgn"} < known
    named = re.findall(r"`lru-audit ([a-z-]+)", _FENCED.sub("", (docs.ROOT / page).read_text()))
    assert set(named) <= known | {"--help"}


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page, and what the page itself names."""
    text = _FENCED.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    called = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return called | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", docs.PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Those inside the project; nothing outside is asked."""
    for link in _LINK.findall(_FENCED.sub("", (docs.ROOT / page).read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        leads = (docs.ROOT / page).parent / path if path else docs.ROOT / page
        assert leads.exists(), link
        assert not anchor or anchor in anchors(leads), link


def test_every_page_is_reached_from_the_readme() -> None:
    readme = _FENCED.sub("", (docs.ROOT / "README.md").read_text())
    assert set(docs.PAGES) - {"README.md"} <= set(_LINK.findall(readme))
