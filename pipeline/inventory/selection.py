"""The targets of an inventory that --limit selects."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Collection, Mapping, Sequence

from pipeline.common.text import printable
from pipeline.inventory.target import Target


class Selection:
    """Patterns of --limit: globs for the name, and `LABEL=GLOB` for labels.

    A target matches if its name matches any glob for names, and each named label matches any glob for that label.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns
        globs: dict[str, list[str]] = {}
        for pattern in patterns:
            label, equals, glob = pattern.partition("=")
            globs.setdefault(label if equals else "", []).append(glob if equals else pattern)
        regexes = {label: re.compile("|".join(map(fnmatch.translate, group))) for label, group in globs.items()}
        self._name_regex = regexes.pop("", None)
        self._label_regexes = regexes

    def __str__(self) -> str:
        return printable(" --limit ".join(map(shlex.quote, self._patterns)))

    def matches(self, target: Target) -> bool:
        return self.selects(target.name, target.labels)

    def selects(self, name: str, labels: Mapping[str, str], unknown_labels: Collection[str] = ()) -> bool:
        """Return whether a target matches, or may match where some of its labels are not known yet."""
        if self._name_regex is not None and not self._name_regex.match(name):
            return False
        return all(
            label in unknown_labels or (label in labels and regex.match(labels[label]))
            for label, regex in self._label_regexes.items()
        )
