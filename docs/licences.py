"""Write docs/licences.md: the licence of each distribution that `make audit` installs, from its own metadata.

python -m docs.licences
"""

from __future__ import annotations

from importlib.metadata import PackageMetadata, metadata
from pathlib import Path

from tests import lock

FILE = Path(__file__).with_suffix(".md")

# Licences under which a distribution may be installed beside this program, which is Apache-2.0.
ACCEPTED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "PSF-2.0", "Zlib"),
    *("LGPL-2.1-or-later", "MPL-2.0"),  # of libraries that are used unchanged
}

# SPDX identifiers of what metadata without License-Expression says.
_IDENTIFIERS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: MIT License": "MIT",
}

_INTRO = """\
<!-- Written by `python -m docs.licences`; do not edit. -->
# Licences

list-lru-audit is under the [Apache License 2.0](../LICENSE). `make audit` and `pip install` also install the
distributions below, each under its own licence, from an index of Python packages: neither the repository nor the wheel
contains any of them.

drgn is under the LGPL, version 2.1 or later. list-lru-audit imports it unchanged, as a library that you can replace by
your own build, and so stays under its own licence. `fetch-drgn` downloads drgn's wheels, and an audit over ssh sends
the one that fits, as it is, to hosts without drgn: those who pass such wheels on pass on LGPL software.

| distribution | licence |
|---|---|
"""


def page() -> str:
    """Return the text of the page."""
    return _INTRO + "".join(f"| {name} | {licence(metadata(name))} |\n" for name, _, _ in lock.pins("run"))


def licence(fields: PackageMetadata) -> str:
    """Return the SPDX expression of a distribution, or what its metadata has instead."""
    names = [fields.get("License-Expression"), fields.get("License")]
    names += [text for text in fields.get_all("Classifier") or [] if text.startswith("License :: ")]
    name = next((name for name in names if name), "none")
    return _IDENTIFIERS.get(name, name)


if __name__ == "__main__":
    FILE.write_text(page())
