"""Types and symbols without debug info, compared with each kernel's own reports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from drgn import FaultError, Program, TypeKind, offsetof, sizeof
from drgn.helpers.linux.cgroup import cgroup_path, css_for_each_descendant_pre
from drgn.helpers.linux.slab import for_each_slab_cache, slab_cache_usage, slab_object_info

from pipeline.collector.access import kernel
from pipeline.collector.status import CollectError
from pipeline.collector.walk import nodes
from tests.collector.conftest import CORES, has_reference


def test_types_come_from_the_kernel_itself(core) -> None:
    assert core.kernel.types_source == "btf"


def test_sizes_and_offsets_are_those_of_vmcoreinfo(core) -> None:
    """The compiler computes the sizes in VMCOREINFO; BTF must have the same for every struct in both."""
    prog = core.kernel.prog
    vmcoreinfo = prog["VMCOREINFO"].string_().decode()
    checks = 0
    for name, value in re.findall(r"^SIZE\((\w+)\)=(\d+)$", vmcoreinfo, re.MULTILINE):
        try:
            vmcoreinfo_type = prog.type(name if name.endswith("_t") else f"struct {name}")
        except LookupError:
            continue
        assert sizeof(vmcoreinfo_type) == int(value), name
        checks += 1
    for name, member, value in re.findall(r"^OFFSET\((\w+)\.(\w+)\)=(\d+)$", vmcoreinfo, re.MULTILINE):
        try:
            vmcoreinfo_type = prog.type(name if name.endswith("_t") else f"struct {name}")
            offset = offsetof(vmcoreinfo_type, member)
        except LookupError:
            continue
        assert offset == int(value), (name, member)
        checks += 1
    assert checks > 30


def test_enumerators_are_those_of_vmcoreinfo(core) -> None:
    prog = core.kernel.prog
    vmcoreinfo = prog["VMCOREINFO"].string_().decode()
    checks = 0
    for name, value in re.findall(r"^NUMBER\((PG_\w+|NR_FREE_PAGES)\)=(\d+)$", vmcoreinfo, re.MULTILINE):
        try:
            assert prog.constant(name).value_() == int(value), name
        except LookupError:
            continue
        checks += 1
    assert checks >= 3


def test_symbols_are_those_of_proc_kallsyms(core) -> None:
    prog = core.kernel.prog
    lines = [line.split() for line in core.truth("kallsyms").splitlines()]
    assert len(lines) >= 4
    for address, _, name, *module in lines:
        if not module:
            assert int(address, 16) in {symbol.address for symbol in prog.symbols(name)}, name


@has_reference
def test_slab_helpers_of_drgn(core) -> None:
    """Cache iteration, usage and object info work with BTF; the names are those of the guest's /proc/slabinfo."""
    prog = core.kernel.prog
    caches = {cache.name.string_().decode(): cache for cache in for_each_slab_cache(prog)}
    guest_caches = {line.split()[0] for line in core.truth("slabinfo").splitlines()[2:]}
    assert guest_caches <= set(caches)
    for name, reference in core.reference["slab_usage"].items():
        if reference is None:
            continue  # drgn follows the NULL pointer to the kmem_cache_node of an offline node
        usage = slab_cache_usage(caches[name])
        assert (usage.num_slabs, usage.active_objs) == (reference["slabs"], reference["active_objects"]), name
    lru = core.rows("list_lrus")[0]
    node = prog.type("struct list_lru").member("node").offset
    info = slab_object_info(prog, prog.read_word(lru["address"] + node))
    assert info.allocated
    assert info.slab_cache.name.string_().startswith(b"kmalloc-")


def test_cgroup_helpers_of_drgn(core) -> None:
    root = core.kernel.prog["root_mem_cgroup"].css.address_of_()
    paths = [cgroup_path(css.cgroup).decode() for css in css_for_each_descendant_pre(root)]
    assert sorted(paths) == sorted(memcg["path"] for memcg in core.rows("memcgs"))


def test_types_look_like_dwarfs(core) -> None:
    prog = core.kernel.prog
    assert prog.type("unsigned long").size == 8
    assert prog.type("struct list_head").member("next").type.type.tag == "list_head"
    assert prog.type("size_t").kind is TypeKind.TYPEDEF
    assert prog.type("struct list_lru").member("memcg_aware").type.unaliased_kind() is TypeKind.BOOL
    # A bit field keeps its width.
    fields = [member for member in prog.type("struct task_struct").members if member.bit_field_size]
    assert fields


def test_a_kernel_without_numa_has_one_node() -> None:
    """Without CONFIG_NUMA nr_node_ids is a macro, 1U (include/linux/nodemask.h)."""
    assert nodes.nr_node_ids(Program()) == 1


def write_file(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    "data", [b"", b"hello\n", bytes(100_000), b"\x7fELF\x02\x01" + bytes(100), b"KDUMP   " + bytes(5000)]
)
def test_what_is_no_core_is_a_bad_core(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CollectError) as error_info:
        kernel.open_kernel(write_file(tmp_path / "core", data))
    assert error_info.value.status == "bad_core"
    assert str(tmp_path / "core") in str(error_info.value)


def test_a_core_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="no such file") as error_info:
        kernel.open_kernel(str(tmp_path / "none"))
    assert error_info.value.status == "unreachable"


def test_a_core_cut_in_half_never_gives_numbers(core, tmp_path: Path) -> None:
    from pipeline.collector import snapshot

    data = core.path.read_bytes()
    path = write_file(tmp_path / "core", data[: len(data) // 2])
    with pytest.raises((CollectError, FaultError)) as error_info:
        snapshot.take(kernel.open_kernel(path))
    assert getattr(error_info.value, "status", "bad_core") in ("bad_core", "no_types")


def test_a_debug_dir_without_it_names_the_build_id(core, tmp_path: Path) -> None:
    text = r"the vmlinux of \S+ \(package \S+-dbg\) with build id [0-9a-f]{40} is not below "
    with pytest.raises(CollectError, match=text) as error_info:
        kernel.open_kernel(str(core.path), debug_dirs=[str(tmp_path)])
    assert error_info.value.status == "no_types"


@pytest.mark.parametrize("is_named", [False, True])
def test_no_plugin_of_drgn_is_loaded_unless_it_is_named(is_named: bool, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("import sys; print('plugin loaded', file=sys.stderr)")
    env = {**os.environ, "DRGN_PLUGINS": f"mine={plugin}" if is_named else ""}
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline.collector", CORES[0].path, "--no-charged"],
        cwd=Path(__file__).parents[3],
        env=env,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert b" drgn.helpers.linux.mm\n" in process.stderr
    assert b" drgn.commands" not in process.stderr
    assert (b"plugin loaded" in process.stderr) == is_named
