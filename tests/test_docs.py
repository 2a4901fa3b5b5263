"""The docs show what their commands print."""

from __future__ import annotations

import re

import pytest

from tests import docs


@pytest.mark.parametrize("document", docs.DOCUMENTS)
def test_the_examples_print_what_the_docs_show(document: str) -> None:
    written = (docs.ROOT / document).read_text()
    assert "<!-- run -->" in written
    assert docs.steady(docs.now(document)) == docs.steady(written), "python -m tests.docs writes it anew"


@pytest.mark.parametrize("document", docs.DOCUMENTS)
def test_what_a_reader_types_is_a_command_of_the_program(document: str) -> None:
    from pipeline.cli import parser

    known = set(parser().format_help().partition("{")[2].partition("}")[0].split(",")) | set(
        re.findall(r"^    (\w[\w-]+) ", parser().format_help(), re.MULTILINE)
    )
    for name in re.findall(r"^\$ lru-audit ([a-z-]+)", (docs.ROOT / document).read_text(), re.MULTILINE):
        assert name in known
