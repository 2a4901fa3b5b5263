"""Names from a kernel, a host or an inventory, made harmless for each output that shows them."""

from __future__ import annotations

import re
import unicodedata

from pipeline.common.text import printable

_MARKDOWN_ACTIVE = re.compile(r"[\\`*\[\]|~$#]|(?<!\w)_|_(?!\w)")
_FORMULA = ("=", "+", "-", "@")
_MARKDOWN_LINKS = re.compile(r"(?i)://|www\.|@")


def csv(text: str) -> str:
    """Escape as for a terminal, and put a quote before what a spreadsheet would take for a formula.

    Some take the fullwidth forms of East Asian keyboards for one, too.
    """
    text = printable(text)
    return "'" + text if unicodedata.normalize("NFKC", text.lstrip()[:1]) in _FORMULA else text


def markdown(text: str) -> str:
    """Escape as for a terminal, and so that a table cell shows it as it is: no HTML, emphasis, link or new column."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKDOWN_ACTIVE.sub(r"\\\g<0>", text)
    # GitHub makes links of bare addresses and names; an entity is shown the same and starts none.
    return _MARKDOWN_LINKS.sub(lambda link: f"{link[0][:-1]}&#{ord(link[0][-1])};", text)
