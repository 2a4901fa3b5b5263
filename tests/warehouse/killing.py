"""An audit hook that kills its process at a chosen step, for tests that kill at each step in turn."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Container


def count_down(left: int, steps: Container[str]) -> Callable[[str, object], None]:
    """Return a hook that lets `left` of these audit events pass and kills at the next."""

    def hook(event: str, _: object) -> None:
        nonlocal left
        left -= event in steps
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook
