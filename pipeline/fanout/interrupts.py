"""SIGINT, SIGTERM and SIGHUP during a collection: KeyboardInterrupt at a moment when it leaves nothing behind."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, ClassVar

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Ignore a signal that follows another within this time, as a repetition.
_REPEATED_SIGNAL_S = 2.0


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal has arrived since the last call.

    Python discards the exception of a signal handler that runs during a destructor or a callback of Ray's C++ code.
    """
    if Handlers.active and Handlers.active.has_interrupt:
        Handlers.active.has_interrupt = False
        raise KeyboardInterrupt


class Handlers:
    """Handlers that turn the signals of NUMBERS into KeyboardInterrupt, deferred while Ray shuts down.

    An interrupted shutdown leaves processes and files behind. A signal that the caller ignores stays ignored.

    :cvar active: the instance whose handlers are installed.
    :ivar has_interrupt: whether KeyboardInterrupt was raised since `raise_if_interrupted` last cleared this.
    """

    active: ClassVar[Handlers | None] = None

    def __init__(self) -> None:
        self.has_interrupt = False
        self._previous_handlers: dict[int, Any] = {}
        self._is_deferring = True
        self._has_deferred_signal = False
        self._last_interrupt = -_REPEATED_SIGNAL_S

    def __enter__(self) -> Handlers:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        Handlers.active = self
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self._is_deferring:
            self._has_deferred_signal = True
        elif time.monotonic() - self._last_interrupt >= _REPEATED_SIGNAL_S:
            self._last_interrupt = time.monotonic()
            self.has_interrupt = True
            raise KeyboardInterrupt

    def defer(self) -> None:
        """Defer signals from now on."""
        self._is_deferring = True

    def deliver(self) -> None:
        """Raise KeyboardInterrupt for a deferred signal, and stop deferring."""
        self._is_deferring = False
        if self._has_deferred_signal:
            self._has_deferred_signal = False
            self._handle(0, None)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        Handlers.active = None
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._has_deferred_signal and kind is not KeyboardInterrupt:
            raise KeyboardInterrupt
