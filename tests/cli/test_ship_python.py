"""--ship-python and --python on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import cli
from pipeline.cli import collecting
from pipeline.common.errors import UsageError
from pipeline.inventory import Target
from tests.fanout.transports.pythons import ARCH, PYTHON, VERSION, archive

__all__ = ["archive"]


def targets_of(*args: str | Path) -> list[Target]:
    return collecting._targets(cli.parser().parse_args(["plan", *map(str, args)]))


def usage_error(*args: str | Path) -> str:
    with pytest.raises(UsageError) as error_info:
        targets_of(*args)
    return str(error_info.value)


def test_the_archive_and_the_wheel_for_it_are_checked_before_anything_starts(archive: Path, tmp_path: Path) -> None:
    sending = ("ssh:h", "--ship-python", archive)
    assert usage_error(*sending).startswith("--ship-python and --drgn-wheels DIR must be given together")
    fetch = f"run lru-audit fetch-drgn --drgn-wheels {tmp_path} --python {VERSION} --arch {ARCH}"
    assert fetch in usage_error(*sending, "--drgn-wheels", tmp_path)
    tag = "cp" + VERSION.replace(".", "")
    (tmp_path / f"drgn-0.3.0-{tag}-{tag}-manylinux2014_{ARCH}.manylinux_2_17_{ARCH}.whl").touch()
    (target,) = targets_of(*sending, "--drgn-wheels", tmp_path)
    assert (target.ship_python, target.drgn_wheels) == (str(archive), str(tmp_path))
    other = usage_error("ssh:h", "--ship-python", PYTHON, "--drgn-wheels", tmp_path)
    assert other == f"--ship-python: {PYTHON}: not a tar archive"
    missing = usage_error("ssh:h", "--ship-python", tmp_path / "none", "--drgn-wheels", tmp_path)
    assert missing == f"--ship-python: {tmp_path}/none: No such file or directory"


def test_a_plan_shows_what_is_tried_first(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tag = "cp" + VERSION.replace(".", "")
    (tmp_path / f"drgn-0.3.0-{tag}-{tag}-manylinux2014_{ARCH}.whl").touch()
    assert cli.main(["plan", "ssh:h", "--ship-python", str(archive), "--drgn-wheels", str(tmp_path)]) == 0
    assert f"  python3, else {archive.name}  " in capsys.readouterr().out


def test_a_command_is_for_the_targets_without_one_of_their_own(tmp_path: Path) -> None:
    inventory = tmp_path / "fleet.yaml"
    inventory.write_text("- {target: 'ssh:a', python: python3.9}\n- {target: 'ssh:b'}\n")
    podman = "podman run -i --privileged 'an image' python3"
    a, b, c = targets_of("ssh:c", "-i", inventory, "--python", podman)
    assert {t.name: t.python for t in (a, b, c)} == {"a": "python3.9", "b": podman, "c": podman}


@pytest.mark.parametrize("text", ["", " ", "''", "podman 'run", "venv/bin/python"])
def test_a_command_that_cannot_be_one_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["run", "ssh:h", "--python", text])
    assert "error: argument --python: " in capsys.readouterr().err
