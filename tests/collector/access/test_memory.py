"""Bulk reads give what single reads do, and read no page that they need not."""

from __future__ import annotations

import pytest
from drgn import FaultError

from pipeline.collector.access import memory
from tests.collector.made import SyntheticKernel

PAGE = 0xFFFF888000010000


def test_many_strings_are_what_each_of_them_is() -> None:
    """Short, empty and long ones, and those at the end of a page, the last of them without a page behind it."""
    kernel = SyntheticKernel("")
    strings = {
        PAGE: b"web.slice",
        PAGE + 10: b"",
        PAGE + 11: 64 * b"x",
        PAGE + 100: 300 * b"y",
        PAGE + 4096 - 20: b"from page to page, and on",
        PAGE + 3 * 4096 - 4: b"end",
    }
    for address, string in strings.items():
        kernel.write(address, string + b"\0")
    assert memory.c_strings(kernel.prog, strings) == strings
    kernel.write(PAGE + 3 * 4096 - 1, b"x")
    with pytest.raises(FaultError):
        memory.c_strings(kernel.prog, strings)


@pytest.mark.parametrize("start", [PAGE, PAGE + 4000])
def test_a_string_without_an_end_is_cut_where_no_name_of_a_system_call_reaches(start: int) -> None:
    """PATH_MAX: 4,096 bytes with the NUL."""
    kernel = SyntheticKernel("")
    kernel.write(start, 4095 * b"x" + b"\0")
    assert memory.c_string(kernel.prog, start) == 4095 * b"x"
    kernel.write(start, 16384 * b"x")
    kernel.reads = 0
    assert memory.c_strings(kernel.prog, [start]) == {start: 4096 * b"x" + b"//..."}
    assert kernel.reads <= 4


def test_a_path_that_is_too_long_keeps_its_end_behind_a_mark() -> None:
    """However it was put together, it is not longer, and the mark is there once."""
    path = b""
    for number in range(9000):
        path = memory.bounded_path(path + b"/%d" % number)
    assert path == b"//..." + b"".join(b"/%d" % number for number in range(9000))[-4096:]
    assert memory.bounded_path(4096 * b"/") == 4096 * b"/"


def test_escaped_text_differs_where_bytes_do_and_is_that_of_c() -> None:
    strings = [b"fuse.sshfs", "né".encode(), b"\xff", rb"\xff", rb"\\xff", b"\\\xff", b"\xc3", b"\\"]
    texts = [memory.escaped_text(string) for string in strings]
    assert texts[:3] == ["fuse.sshfs", "né", r"\xff"]
    decoded = [text.encode().decode("unicode_escape").encode("latin-1") for text in texts]
    assert decoded == strings


def test_structs_are_read_in_bulk_from_their_first_selected_member_to_the_last() -> None:
    """A struct on two pages of which the selected members' page is there only."""
    kernel = SyntheticKernel("struct item { long other[4]; long number; long *pointer; };")
    members = memory.Members(kernel.prog, "struct item", number="number", pointer="pointer")
    addresses = [PAGE - 32, *range(PAGE + 16, PAGE + 4096 - 48, 48)]
    for address in addresses:
        kernel.words(address + 32, address, ~address)
    kernel.reads = 0
    mask = (1 << 64) - 1
    expected = {address: (address - (1 << 64), ~address & mask) for address in addresses}
    assert members.read_each(kernel.prog, addresses) == expected
    assert kernel.reads == 1
