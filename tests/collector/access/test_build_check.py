"""Types of one kernel held against another: the bundled cores' own BTF, symbols and VMCOREINFO."""

from __future__ import annotations

import pytest

from pipeline.collector.access import btf_files, build_check
from pipeline.collector.access.build_check import Build
from tests.collector.conftest import CORES, Core


def types_of(core: Core) -> object:
    prog = core.kernel.prog
    return btf_files._types_only(prog.platform, btf_files.read_own(prog))


@pytest.mark.parametrize("other", CORES, ids=lambda core: core.name)
def test_types_fit_the_kernels_of_their_build_only(core: Core, other: Core) -> None:
    """truth/version is the guest's own `uname -r` and `uname -v`."""
    if core.target["arch"] != other.target["arch"]:
        return
    is_same_build = core.truth("version") == other.truth("version")
    assert (not build_check.type_differences(core.kernel.prog, types_of(other))) == is_same_build


def test_the_kernels_own_symbols_have_the_addresses_of_vmcoreinfo(core: Core) -> None:
    """Among them that of mem_section, for which VMCOREINFO has the value of a pointer."""
    assert build_check.symbol_differences(core.kernel.prog) == []


def test_the_build_is_that_of_the_guests_uname(core: Core) -> None:
    build = build_check.read_build(core.kernel.prog)
    assert core.truth("version").startswith(f"Linux version {build.release} ")
    assert core.truth("version").endswith(f" {build.version}\n")


@pytest.mark.parametrize(
    ("release", "version", "package"),
    [
        ("5.10.0-32-cloud-amd64", "#1 SMP Debian 5.10.223-1 (2024-08-10)", "linux-image-5.10.0-32-cloud-amd64-dbg"),
        (
            "5.4.0-42-generic",
            "#46~18.04.1-Ubuntu SMP Fri Jul 10 07:21:24 UTC 2020",
            "linux-image-unsigned-5.4.0-42-generic-dbgsym",
        ),
        ("4.18.0-394.el8.x86_64", "#1 SMP Tue May 31 16:19:11 UTC 2022", "kernel-debuginfo-4.18.0-394.el8.x86_64"),
        ("3.10.0-1160.el7.x86_64", "#1 SMP Mon Oct 19 16:18:59 UTC 2020", "kernel-debuginfo-3.10.0-1160.el7.x86_64"),
        ("5.8.15-301.fc33.x86_64", "#1 SMP Thu Oct 15 16:58:06 UTC 2020", "kernel-debuginfo-5.8.15-301.fc33.x86_64"),
        (
            "4.14.355-275.572.amzn2.x86_64",
            "#1 SMP Sat Dec 21 10:53:44 UTC 2024",
            "kernel-debuginfo-4.14.355-275.572.amzn2.x86_64",
        ),
        (
            "5.4.17-2136.300.7.el8uek.x86_64",
            "#2 SMP Fri Oct 8 16:23:01 PDT 2021",
            "kernel-uek-debuginfo-5.4.17-2136.300.7.el8uek.x86_64",
        ),
        # Their packages have other names.
        ("4.18.0-394.rt7.179.el8.x86_64", "#1 SMP PREEMPT_RT Tue May 31 16:19:11 UTC 2022", None),
        ("5.14.0-427.13.1.el9_4.x86_64+debug", "#1 SMP PREEMPT_DYNAMIC Wed Apr 10 10:29:16 EDT 2024", None),
        ("5.4.286", None, None),
    ],
)
def test_a_remedy_names_the_package_of_the_distribution(release: str, version: str | None, package: str | None) -> None:
    text = Build(release, version).vmlinux
    assert text == f"the vmlinux of {release}" + (f" (package {package})" if package else "")


def test_a_message_names_three_differences_at_most() -> None:
    assert build_check.describe(["a", "b"]) == "a, b"
    assert build_check.describe(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
