"""Symbol tables in the formats of kernels that the lab cannot boot, built from a real kernel's symbols."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from drgn import FaultError

from pipeline.collector.access import kallsyms, kernel, utsname
from pipeline.collector.status import CollectError
from tests.collector.conftest import CORES
from tests.fuzz.kernels import Kernel, kernel_seeds

# Address of the kernel's text on x86_64, ppc64le and s390x, and their byte order.
TEXTS = {"x86_64": (0xFFFFFFFF81000000, "<"), "ppc64le": (0xC000000000000000, "<"), "s390x": (0x100000, ">")}


def align(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


@pytest.fixture(scope="module")
def real_table() -> dict[str, bytes]:
    """The parts of a 5.10 kernel's symbol table, from its core."""
    core = next(core for core in CORES if core.name == "deb510-n1")
    prog, _ = kernel._attach(str(core.path), None)
    stext = int(re.search(rb"SYMBOL\(_stext\)=(\w+)", prog["VMCOREINFO"].string_())[1], 16)
    addresses = kallsyms._find_tables(prog, stext, "<")
    count = prog.read_u32(addresses["num_syms"])
    names = prog.read(addresses["names"], addresses["token_table"] - addresses["names"])
    end, starts = 0, []
    for i in range(count):
        if i % 256 == 0:
            starts.append(end)
        end += 1 + names[end]
    return {
        "names": names[:end],
        "starts": starts,
        "count": count,
        "token_table": prog.read(addresses["token_table"], addresses["token_index"] - addresses["token_table"]),
        "token_index": prog.read(addresses["token_index"], 512),
    }


@pytest.mark.parametrize("markers", ["I", "Q"], ids=["since v4.20", "before v4.20"])
@pytest.mark.parametrize("absolute", [False, True], ids=["relative, since v4.6", "absolute, before v4.6"])
@pytest.mark.parametrize("arch", TEXTS)
def test_tables_are_found_in_the_order_in_which_old_kernels_have_them(
    real_table, markers: str, absolute: bool, arch: str
) -> None:
    """scripts/kallsyms.c: addresses or offsets and base, num_syms, names, markers, token_table, token_index."""
    text, order = TEXTS[arch]
    count = real_table["count"]
    parts = {"text": bytes(range(256)) * 4096}
    if absolute:
        parts["addresses"] = struct.pack(f"{order}{count}Q", *range(text, text + 16 * count, 16))
    else:
        parts["offsets"] = align(struct.pack(f"{order}{count}i", *range(-1, -1 - 16 * count, -16)))
        parts["relative_base"] = struct.pack(f"{order}Q", text)
    parts["num_syms"] = align(struct.pack(order + markers, count))
    parts["names"] = align(real_table["names"])
    parts["markers"] = align(struct.pack(f"{order}{len(real_table['starts'])}{markers}", *real_table["starts"]))
    parts["token_table"] = real_table["token_table"]
    parts["token_index"] = struct.pack(f"{order}256H", *struct.unpack("<256H", real_table["token_index"]))
    image, offsets = bytearray(), {}
    for name, data in parts.items():
        offsets[name] = len(image)
        image += data
    image += bytes(1 << 20)
    tables = kallsyms._tables_around(image, kallsyms._DIGITS.search(image).start(), order, text)
    assert tables
    num_syms = tables.pop("num_syms")
    assert struct.unpack_from(f"{order}I", image, num_syms)[0] == count
    assert num_syms - offsets["num_syms"] in (0, 4)
    assert tables == {name: offset for name, offset in offsets.items() if name not in ("text", "markers", "num_syms")}


class TestAddressesThatCannotBe:
    """VMCOREINFO is the dump's, and may have any numbers."""

    @pytest.fixture
    def kernel(self) -> Callable[[bytes, bytes], Kernel]:
        """Return a kernel whose VMCOREINFO has another number on one line."""
        text, _, memory = next(kernel_seeds()).partition(b"\0")
        assert kallsyms._load_own_symbols(Kernel(memory, text))(None, "_stext", None, True)

        def with_number(name: bytes, number: bytes) -> Kernel:
            changed, count = re.subn(rb"(?m)^(\w+\(%s\)=).*" % name, rb"\g<1>" + number, text)
            assert count == 1
            return Kernel(memory, changed)

        return with_number

    @pytest.mark.parametrize("number", [b"ffffffff80000000", b"ffffffffffffffff", b"0", b"f" * 17, b"ffffffffc1000010"])
    @pytest.mark.parametrize("name", [b"kallsyms_token_table", b"kallsyms_token_index", b"kallsyms_names"])
    def test_of_a_table_are_refused(self, kernel, name: bytes, number: bytes) -> None:
        with pytest.raises((CollectError, FaultError)) as error_info:
            kallsyms._load_own_symbols(kernel(name, number))
        assert getattr(error_info.value, "status", "no_types") == "no_types"

    def test_a_table_that_is_missing_is_named(self, kernel) -> None:
        with pytest.raises(CollectError, match="cannot be decoded: 'num_syms'") as error_info:
            kallsyms._load_own_symbols(kernel(b"kallsyms_num_syms", b""))
        assert error_info.value.status == "no_types"

    def test_a_name_of_the_kernel_cannot_be_read_beyond_64_bits(self, kernel) -> None:
        assert utsname.read(kernel(b"init_uts_ns", b"ffffffff81000008")) is not None
        assert utsname.read(kernel(b"init_uts_ns", b"fffffffff81000008")) is None

    @pytest.mark.parametrize("number", [b"-99999999999999999999", b"0xfffffffffffffffffffff"])
    def test_of_the_text_leave_it_missing(self, kernel, number: bytes) -> None:
        with_text_elsewhere = kernel(b"phys_base", number)
        assert not kallsyms._is_text_in_memory(with_text_elsewhere, 0xFFFFFFFF81000000)


SYSTEM_MAP = "System.map-5.10.0-32-cloud-arm64"


class TestFunctionsOnly:
    """A kernel without CONFIG_KALLSYMS_ALL: its System.map has the addresses of the variables."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        core_directory = next(core for core in CORES if core.name == "deb510-arm64").directory
        shutil.copy(core_directory / "vmcore", tmp_path)
        shutil.copy(core_directory / SYSTEM_MAP, tmp_path)
        return tmp_path

    def test_vmcoreinfo_agrees_on_the_variables(self, folder: Path) -> None:
        prog = kernel.open_kernel(str(folder / "vmcore")).prog
        symbols = kallsyms.vmcoreinfo_symbols(prog)
        assert prog.symbol("init_uts_ns").address == symbols["init_uts_ns"]
        assert prog["mem_section"].value_() == symbols["mem_section"], (
            "VMCOREINFO has the address of the array, not of the pointer"
        )

    def test_without_the_map_it_is_said_where_to_put_it(self, folder: Path) -> None:
        (folder / SYSTEM_MAP).unlink()
        with pytest.raises(CollectError, match=f"functions only .*{folder}/{SYSTEM_MAP} or /boot/") as error_info:
            kernel.open_kernel(str(folder / "vmcore"))
        assert error_info.value.status == "no_types"

    def test_the_map_of_another_build_is_not_taken(self, folder: Path) -> None:
        own_map = (folder / SYSTEM_MAP).read_text()
        other_map = re.sub(r"(?m)^\w+ (?=T register_filesystem)", "ffff80001036f7b0 ", own_map)
        assert other_map != own_map
        (folder / SYSTEM_MAP).write_text(other_map)
        with pytest.raises(CollectError, match="functions only"):
            kernel.open_kernel(str(folder / "vmcore"))

    def test_the_sentence_that_debian_has_in_its_place_is_not_taken(self, folder: Path) -> None:
        sentence = "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n"
        (folder / SYSTEM_MAP).write_text(sentence)
        with pytest.raises(CollectError, match="functions only"):
            kernel.open_kernel(str(folder / "vmcore"))
