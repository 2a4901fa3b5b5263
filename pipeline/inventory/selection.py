"""Which targets of an inventory a run is limited to."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Sequence

from pipeline.common.text import printable
from pipeline.inventory.target import Target


class Selection:
    """Globs on names, and `LABEL=GLOB` on labels.

    Several for the name, or for one label, add up; the name and each label have all to match.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns
        globs: dict[str, list[str]] = {}
        for pattern in patterns:
            label, equals, glob = pattern.partition("=")
            globs.setdefault(label if equals else "", []).append(glob if equals else pattern)
        self._labels = {label: re.compile("|".join(map(fnmatch.translate, many))) for label, many in globs.items()}
        self._name = self._labels.pop("", None)

    def __str__(self) -> str:
        return printable(" --limit ".join(map(shlex.quote, self._patterns)))

    def has(self, target: Target) -> bool:
        if self._name is not None and not self._name.match(target.name):
            return False
        own = target.labels
        return all(label in own and glob.match(own[label]) for label, glob in self._labels.items())
