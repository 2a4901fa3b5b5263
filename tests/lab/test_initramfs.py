"""The kernel modules of a guest."""

from __future__ import annotations

import lzma
from pathlib import Path

from tests.lab import initramfs


def test_a_module_is_loaded_after_those_it_depends_on(tmp_path: Path) -> None:
    (tmp_path / "a-top.ko").write_bytes(b"\0license=GPL\0depends=b_middle,c\0")
    (tmp_path / "b-middle.ko.xz").write_bytes(lzma.compress(b"\0depends=c\0"))
    (tmp_path / "c.ko").write_bytes(b"\0depends=\0")
    order = initramfs.load_order(tmp_path, ("a_top", "built_in"))
    assert [path.name for path in order] == ["c.ko", "b-middle.ko.xz", "a-top.ko"]
