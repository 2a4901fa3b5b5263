"""The symbol tables of kernels that cannot be booted here, made of a real one's symbols as old kernels wrote them."""

from __future__ import annotations

import re
import struct

import pytest

from pipeline.collector import kallsyms, kernel
from tests.collector.conftest import CORES

TEXT = 0xFFFFFFFF81000000


def align(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


@pytest.fixture(scope="module")
def real() -> dict[str, bytes]:
    """The parts of the symbol table of a 5.10 kernel, as they are in its core."""
    core = next(core for core in CORES if core.name == "deb510-n1")
    prog, _ = kernel._attach(str(core.path))
    stext = int(re.search(rb"SYMBOL\(_stext\)=(\w+)", prog["VMCOREINFO"].string_())[1], 16)
    at = kallsyms._find_tables(prog, stext, "<")
    count = prog.read_u32(at["num_syms"])
    names = prog.read(at["names"], at["token_table"] - at["names"])
    end, starts = 0, []
    for i in range(count):
        if i % 256 == 0:
            starts.append(end)
        end += 1 + names[end]
    return {
        "names": names[:end],
        "starts": starts,
        "count": count,
        "token_table": prog.read(at["token_table"], at["token_index"] - at["token_table"]),
        "token_index": prog.read(at["token_index"], 512),
    }


@pytest.mark.parametrize("markers", ["I", "Q"], ids=["since v4.20", "before v4.20"])
@pytest.mark.parametrize("absolute", [False, True], ids=["relative, since v4.6", "absolute, before v4.6"])
def test_tables_are_found_in_the_order_in_which_old_kernels_have_them(real, markers: str, absolute: bool) -> None:
    """scripts/kallsyms.c: addresses or offsets and base, num_syms, names, markers, token_table, token_index."""
    count = real["count"]
    parts = {"text": bytes(range(256)) * 4096}
    if absolute:
        parts["addresses"] = struct.pack(f"<{count}Q", *range(TEXT, TEXT + 16 * count, 16))
    else:
        parts["offsets"] = align(struct.pack(f"<{count}i", *range(-1, -1 - 16 * count, -16)))
        parts["relative_base"] = struct.pack("<Q", TEXT)
    parts["num_syms"] = struct.pack("<Q", count)
    parts["names"] = align(real["names"])
    parts["markers"] = align(struct.pack(f"<{len(real['starts'])}{markers}", *real["starts"]))
    parts["token_table"] = real["token_table"]
    parts["token_index"] = real["token_index"]
    image, places = bytearray(), {}
    for name, data in parts.items():
        places[name] = len(image)
        image += data
    image += bytes(1 << 20)
    found = kallsyms._tables_around(image, image.index(kallsyms._DIGITS), "<")
    assert found == {name: place for name, place in places.items() if name not in ("text", "markers")}
