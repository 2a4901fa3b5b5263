"""Text of bytes that are wasted, or that an upgrade frees, where they may be a lower bound."""

from __future__ import annotations

from pipeline.common.text import human_bytes, human_error

NO_KNOWN_WASTE = "none known"


def is_known(count: int, lower_bound: bool) -> bool:
    """Whether bytes say something: a lower bound of 0 or less does not."""
    return count > 0 or not lower_bound


def text(count: int, lower_bound: bool, at_least: str = "at least ", error_bytes: int | None = None) -> str:
    """Return bytes as text, or `NO_KNOWN_WASTE`.

    :param at_least: the mark of a lower bound.
    :param error_bytes: half of the interval of a sample, or None without one.
    """
    if not is_known(count, lower_bound):
        return NO_KNOWN_WASTE
    return (at_least if lower_bound else "") + human_bytes(count) + human_error(error_bytes)
