"""Escaping of names from kernels, hosts and inventories for each output format that shows them."""

from __future__ import annotations

import re
import unicodedata

from pipeline.common.text import printable

_MARKDOWN_ACTIVE = re.compile(r"[\\`*\[\]|~$#]|(?<!\w)_|_(?!\w)")
_FORMULA_SIGNS = ("=", "+", "-", "@")
_MARKDOWN_LINKS = re.compile(r"(?i)://|www\.|@")


def csv(text: str) -> str:
    """Escape as for a terminal, and put an apostrophe before text that a spreadsheet would take for a formula.

    Some spreadsheets also accept the fullwidth signs of East Asian keyboards.
    """
    text = printable(text)
    return "'" + text if unicodedata.normalize("NFKC", text.lstrip()[:1]) in _FORMULA_SIGNS else text


def markdown(text: str) -> str:
    """Escape as for a terminal and for a table cell: no HTML, emphasis, link or new column."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKDOWN_ACTIVE.sub(r"\\\g<0>", text)
    # GitHub turns bare addresses and @names into links; an entity inside looks the same and prevents that.
    return _MARKDOWN_LINKS.sub(lambda link: f"{link[0][:-1]}&#{ord(link[0][-1])};", text)
