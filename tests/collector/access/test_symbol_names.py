"""Names found in compressed symbol tables: of real kernels, and of tables made as scripts/kallsyms.c makes them."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import pytest
from _drgn import _linux_helper_load_builtin_kallsyms
from drgn import Program

from pipeline.collector.access import kallsyms, kernel
from pipeline.collector.access.symbol_names import SymbolNames
from tests.collector.conftest import CORES, Core

CORE_BY_BUILD = {core.truth("version"): core for core in CORES}
"""One core of each build: all cores of a build have the same names."""
each_build = pytest.mark.parametrize("core", CORE_BY_BUILD.values(), ids=lambda core: core.name)
DRGN_ARGUMENTS = ("names", "token_table", "token_index", "num_syms", "offsets", "relative_base", "addresses")


def addresses_by_name(prog: Program) -> dict[str, list[int]]:
    """Return the addresses of each name in the kernel's symbol table, decompressed by drgn."""
    vmcoreinfo = kallsyms.vmcoreinfo_symbols(prog)
    tables = {name.removeprefix("kallsyms_"): address for name, address in vmcoreinfo.items()}
    if "names" not in tables:
        tables = kallsyms._find_tables(prog, vmcoreinfo["_stext"], "<")
    arguments = [tables.get(name, 0) for name in DRGN_ARGUMENTS]
    index = _linux_helper_load_builtin_kallsyms(prog, *arguments, vmcoreinfo["_stext"])
    addresses = defaultdict(list)
    for symbol in index(prog, None, None, False):
        addresses[symbol.name].append(symbol.address)
    return addresses


@each_build
def test_what_is_found_is_what_drgn_decompresses(core: Core) -> None:
    prog = core.kernel.prog
    find = kallsyms._read_kallsyms(prog)
    expected = addresses_by_name(prog)
    assert len(expected) > 30_000
    names = {*kernel._DECLARATIONS, *kernel._FUNCTIONS, "__start_BTF", "__stop_BTF"}
    names |= {name for name, addresses in expected.items() if len(addresses) > 20}
    names |= set(random.Random(core.name).sample(sorted(expected), 400))
    names |= {name + "_" for name in names} | {name[1:] for name in names} | {name[:-1] for name in names}
    assert sum(name in expected for name in names) > 400
    assert sum(name not in expected for name in names) > 400
    for name in names:
        addresses = sorted(symbol.address for symbol in find(prog, name, None, False))
        assert addresses == sorted(expected.get(name, [])), name


@each_build
def test_the_symbols_at_an_address_are_those_that_drgn_decompresses(core: Core) -> None:
    prog = core.kernel.prog
    find = kallsyms._read_kallsyms(prog)
    names_by_address = defaultdict(set)
    for name, addresses in addresses_by_name(prog).items():
        for address in addresses:
            names_by_address[address].add(name)
    for address in random.Random(core.name).sample(sorted(names_by_address), 400):
        assert {symbol.name for symbol in find(prog, None, address, False)} == names_by_address[address]


def compress(entries: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Compress entries as optimize_result() of scripts/kallsyms.c does; return them and the text of each token."""
    compressed = [list(entry) for entry in entries]
    used = {value for entry in compressed for value in entry}
    texts = [bytes([value]) if value in used else b"" for value in range(256)]
    for token in reversed(range(256)):
        counts = Counter(pair for entry in compressed for pair in pairwise(entry))
        if token in used or not counts:
            continue
        (pair, _) = max(counts.items(), key=lambda item: item[1])
        texts[token] = texts[pair[0]] + texts[pair[1]]
        for entry in compressed:
            position = 0
            while position + 1 < len(entry):
                if (entry[position], entry[position + 1]) == pair:
                    entry[position : position + 2] = [token]
                position += 1
    return [bytes(entry) for entry in compressed], texts


def table(entries: Iterable[bytes]) -> bytes:
    """Return entries with their lengths in front, in two bytes from 128."""
    data = bytearray()
    for entry in entries:
        length = len(entry)
        data += bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])
        data += entry
    return bytes(data)


def check(names: SymbolNames, expected: list[bytes], absent: Iterable[bytes]) -> None:
    """Assert that each expected name is found wherever it is, and no absent one."""
    assert list(names) == expected
    for name in set(expected):
        indices = [i for i in reversed(range(len(expected))) if expected[i] == name]
        assert list(names.find(name)) == indices, name
    for name in absent:
        assert name in expected or not list(names.find(name)), name


@pytest.mark.parametrize("seed", range(20))
def test_names_of_few_letters_whose_pairs_overlap(seed: int) -> None:
    """In a run of one letter it depends on the letters before which pairs the build replaced."""
    choice = random.Random(seed)
    letters = choice.choice([b"a", b"ab", b"abT", b"_abc"])
    words = [bytes(choice.choices(letters, k=choice.randint(1, 12))) for _ in range(1200)]
    expected = words[:600]
    entries, texts = compress(bytes(choice.choices(b"TtDdBb", k=1)) + name for name in expected)
    assert max(map(len, entries)) < 12, "the names are compressed"
    names = SymbolNames(table(entries) + b"\x03aaa", len(entries), texts)
    check(names, expected, words[600:])


@pytest.mark.parametrize("other_token", [b"", b"list"], ids=["other entries", "a token without a pair"])
def test_names_that_another_program_compressed_are_found_all_the_same(other_token: bytes) -> None:
    """The names are stored as they are, although there are tokens. One is so long that its length takes two bytes."""
    expected = [b"list_lrus", b"list_lru_add", b"list_lrus", b"list" * 60, b"s"]
    _, texts = compress(b"d" + name for name in expected)
    if other_token:
        texts[texts.index(b"")] = other_token
    names = SymbolNames(table(b"d" + name for name in expected), len(expected), texts)
    check(names, expected, [b"list_lru", b"ist_lrus", b"", b"list" * 59])


@pytest.mark.parametrize("seed", range(20))
def test_a_name_is_missing_only_if_no_entry_decompresses_to_it(seed: int) -> None:
    """Each entry may have any tokens that spell it."""
    choice = random.Random(seed)
    words = {bytes(choice.choices(b"abT", k=choice.randint(1, 12))) for _ in range(400)}
    expected, absent = sorted(words)[::2], sorted(words)[1::2]
    _, texts = compress(b"d" + name for name in expected)
    entries = []
    for name in expected:
        rest, entry = b"d" + name, b""
        while rest:
            value = choice.choice([value for value, text in enumerate(texts) if text and rest.startswith(text)])
            entry += bytes([value])
            rest = rest.removeprefix(texts[value])
        entries.append(entry)
    check(SymbolNames(table(entries), len(entries), texts), expected, absent)


def test_a_table_that_ends_too_early_is_refused() -> None:
    with pytest.raises(IndexError):
        SymbolNames(table([b"dlist_lrus"]), 2, [bytes([value]) for value in range(256)])
