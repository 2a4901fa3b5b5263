"""Parsing of sizes with binary and decimal units."""

from __future__ import annotations

import pytest

from pipeline.common.text import human_bytes, joined_lines, parse_bytes


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("0", 0),
        ("33554432", 1 << 25),
        ("1.5KiB", 1536),
        ("10GiB", 10 * 2**30),
        ("10 gib", 10 * 2**30),
        ("10Gi", 10 * 2**30),
        ("10GB", 10 * 10**9),
        ("10G", 10 * 10**9),
        ("5b", 5),
        ("2PB", 2 * 10**15),
        ("2 PiB", 2 << 50),
    ],
)
def test_an_i_makes_a_unit_binary_and_without_it_it_is_decimal(text, bytes_):
    assert parse_bytes(text) == bytes_


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1XB", "1ib", "4GiB4", "1e9", "1,5GB", "\u0661GB", "1\n"])
def test_what_is_no_size_is_refused_by_name(text):
    with pytest.raises(ValueError, match="invalid size") as error:
        parse_bytes(text)
    assert str(error.value) == f"invalid size {text!a}; expected something like 512MiB or 4GB"


@pytest.mark.parametrize("count", [0, 512, 1023, 1 << 20, 7_989_661_440, 3 << 50])
def test_what_is_shown_is_read_as_the_same_to_three_digits(count):
    assert parse_bytes(human_bytes(count)) == pytest.approx(count, rel=0.005)


def test_of_a_long_text_the_start_remains_or_the_end():
    assert joined_lines("a\n b\x1b") == "a b\\x1b"
    assert joined_lines("abcdefghijk", 10) == "abcdef ..."
    assert joined_lines("abcdefghijk", 10, keep_end=True) == "... fghijk"
