"""An audit hook that kills its process at a chosen step, for tests that kill at every step in turn."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Container


def kill_hook(allowance: int, steps: Container[str]) -> Callable[[str, object], None]:
    """Return a hook that lets `allowance` of these audit events pass and kills the process at the next."""

    def hook(event: str, _: object) -> None:
        nonlocal allowance
        allowance -= event in steps
        if allowance < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook
