"""Every option is applied to the targets that it is for, or refused: on the command line and in an inventory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.cli import collecting
from pipeline.common.errors import UsageError
from pipeline.inventory import Target, scopes
from pipeline.inventory.entry import KEYS
from tests import program

KINDS = {
    "core": {"target": "/core"},
    "core at a host": {"target": "/core", "via": "ssh:h"},
    "core at a node": {"target": "/core", "via": "ray:n"},
    "live": {"target": "live:"},
    "node": {"target": "ray:n"},
    "host": {"target": "ssh:h"},
    "guest": {"target": "qmp:/vm.sock"},
    "guest at a host": {"target": "qmp:/vm.sock", "via": "ssh:h"},
}
CORES = {"core", "core at a host", "core at a node"}
GUESTS = {"guest", "guest at a host"}
OVER_SSH = {"core at a host", "host", "guest at a host"}
EVERY = set(KINDS)

# Options of the command line: the field of Target, the value, and the kinds of targets that take it.
OPTIONS = {
    "--vmcoreinfo /f": ("vmcoreinfo", "/f", CORES | GUESTS),
    "--ssh-config /f": ("ssh_config", "/f", OVER_SSH),
    "--ship-drgn --drgn-wheels /d": ("drgn_wheels", "/d", OVER_SSH),
    "--python /usr/bin/python3.9": ("python", "/usr/bin/python3.9", EVERY),
    "--ship-python /f --drgn-wheels /d": ("ship_python", "/f", OVER_SSH),
    "--vmlinux /f": ("vmlinux", "/f", EVERY),
    "--debug-dir /d": ("debug_dir", "/d", EVERY),
    "--btf-dir /d": ("btf_dir", "/d", EVERY),
    "--charged": ("charged", True, EVERY),
    "--no-charged": ("charged", False, EVERY),
    "--target-kernel 6.1": ("target_kernel", "6.1", EVERY),
    "--target-layout 6.13": ("target_layout", "6.13", EVERY),
    "--verify": ("verify", True, EVERY),
    "--max-reads 5": ("max_reads", 5, EVERY),
}
# Keys of an inventory, likewise.
ENTRY_KEYS = {
    "vmcoreinfo": ("/f", CORES | GUESTS),
    "via": ("ssh:h", CORES | GUESTS),
    "become": (True, OVER_SSH),
    "name": ("a", EVERY),
    "labels": ({"a": "b"}, EVERY),
    "python": ("/usr/bin/python3", EVERY),
    "timeout_s": (5, EVERY),
    "vmlinux": ("/f", EVERY),
    "debug_dir": ("/d", EVERY),
    "target_kernel": ("7.2", EVERY),
}


@pytest.fixture(autouse=True)
def no_check_of_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/cli/test_ship_python.py has real ones."""
    monkeypatch.setattr(collecting, "_check_python", lambda path, wheel_directory: None)


def targets_of(folder: Path, options: str, *entries: dict[str, object]) -> list[Target]:
    """The targets of a run with these options and an inventory with these entries."""
    (folder / "fleet.json").write_text(json.dumps(entries))
    args = ["run", "-i", str(folder / "fleet.json"), *options.split()]
    return collecting._targets(cli.parser().parse_args(args))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_applied_or_refused(tmp_path: Path, option: str, kind: str) -> None:
    field, value, kinds = OPTIONS[option]
    if kind in kinds:
        (target,) = targets_of(tmp_path, option, KINDS[kind])
        assert getattr(target, field) == value
    else:
        (plain_target,) = targets_of(tmp_path, "", KINDS[kind])
        with pytest.raises(UsageError) as error_info:
            targets_of(tmp_path, option, KINDS[kind])
        message = str(error_info.value)
        assert message.startswith(f"--{field.replace('_', '-')} does not apply to {plain_target.name!r}; it is for ")
        assert "\n" not in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ENTRY_KEYS)
def test_a_key_of_an_inventory_is_applied_or_refused(tmp_path: Path, key: str, kind: str) -> None:
    value, kinds = ENTRY_KEYS[key]
    entry = {key: value, **KINDS[kind]}
    if kind in kinds:
        (target,) = targets_of(tmp_path, "", entry)
        assert getattr(target, key) == entry[key]
    else:
        with pytest.raises(UsageError) as error_info:
            targets_of(tmp_path, "", entry)
        assert str(error_info.value).startswith(f"{tmp_path}/fleet.json:1: {key} is for ")


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_for_some_targets_of_a_fleet_is_applied_to_those(tmp_path: Path, option: str) -> None:
    field, value, kinds = OPTIONS[option]
    entries = [{"name": kind, **entry} for kind, entry in KINDS.items()]
    targets = targets_of(tmp_path, option, *entries)
    assert {target.name for target in targets if getattr(target, field) == value} == kinds


def test_what_the_inventory_says_of_a_target_takes_precedence(tmp_path: Path) -> None:
    entries = [
        {"target": "/a", "vmlinux": "/own", "vmcoreinfo": "/own"},
        {"target": "/b", "debug_dir": "/own"},
        {"target": "/c"},
    ]
    a, b, c = targets_of(tmp_path, "--vmlinux /f --vmcoreinfo /n", *entries)
    assert (a.vmlinux, a.debug_dir, a.vmcoreinfo) == ("/own", None, "/own")
    assert (b.vmlinux, b.debug_dir, b.vmcoreinfo) == (None, "/own", "/n")
    assert (c.vmlinux, c.debug_dir, c.vmcoreinfo) == ("/f", None, "/n")


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ("--vmlinux /f --debug-dir /d", "--debug-dir does not apply to '{}'; it is for targets without vmlinux"),
        ("--vmlinux /f --btf-dir /d", "--btf-dir does not apply to '{}'; it is for targets without vmlinux and debug"),
        (
            "--debug-dir /d --btf-dir /d",
            "--btf-dir does not apply to '{}'; it is for targets without vmlinux and debug",
        ),
    ],
)
def test_sources_of_types_that_exclude_each_other_are_refused(tmp_path: Path, options: str, refused: str) -> None:
    with pytest.raises(UsageError) as error_info:
        targets_of(tmp_path, options, {"target": "/core"})
    assert str(error_info.value).startswith(refused.format("core"))
    with pytest.raises(UsageError, match="debug_dir is for targets without vmlinux"):
        targets_of(tmp_path, "", {"target": "/core", "vmlinux": "/f", "debug_dir": "/d"})


def test_a_btf_directory_is_for_the_targets_without_dwarf_of_their_own(tmp_path: Path) -> None:
    with_dwarf, without = targets_of(tmp_path, "--btf-dir /d", {"target": "/a", "vmlinux": "/f"}, {"target": "/b"})
    assert (with_dwarf.btf_dir, without.btf_dir) == (None, "/d")


@pytest.mark.parametrize("option", ["--target-kernel 6.6", "--target-layout 5.18"])
def test_the_target_kernel_of_an_inventory_takes_precedence_over_both_options(tmp_path: Path, option: str) -> None:
    entries = {"target": "/a", "target_kernel": "7.2"}, {"target": "/b"}
    a, b = targets_of(tmp_path, option, *entries)
    assert (a.target_kernel, a.target_layout) == ("7.2", None)
    assert option.split()[1] in (b.target_kernel, b.target_layout)


def test_a_target_kernel_and_its_layout_do_not_contradict_each_other(tmp_path: Path) -> None:
    (target,) = targets_of(tmp_path, "--target-kernel 6.1 --target-layout 5.18", {"target": "/core"})
    assert (target.target_kernel, target.target_layout) == ("6.1", None)


@pytest.mark.parametrize(
    "command",
    [("inspect", "/core"), ("run", "/core"), ("estimate", "--superblocks", "1", "--nodes", "1", "--cache-ids", "4")],
)
def test_a_target_kernel_with_another_layout_is_refused(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert cli.main([*command, "--target-kernel", "7.2", "--target-layout", "5.18"]) == cli.USAGE
    assert "--target-layout 5.18 is not the layout of --target-kernel 7.2" in capsys.readouterr().err


def test_a_kernel_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"fleet\.json:1: target_kernel must be one of 6\.1, 6\.6, .*, not '6\.13'"):
        targets_of(tmp_path, "", {"target": "/core", "target_kernel": "6.13"})


def test_no_option_and_no_key_is_missing_here() -> None:
    """An option of the collector that is added later has to be decided for each kind of target."""
    command = cli.parser().parse_args(["inspect", "/core"])
    options_of_the_run = {"command", "target", "json", "inventory", "quiet", "timeout", "ship_drgn"}
    options = set(vars(command)) - options_of_the_run
    assert options == {field for field, _, _ in OPTIONS.values()}
    assert set(KEYS) == {"target", *ENTRY_KEYS}
    assert set(scopes.SCOPES) == options | set(KEYS)


@pytest.mark.parametrize(
    "args", [("live:", "--vmcoreinfo", "f"), ("ssh:h", "--vmcoreinfo", "f"), ("/c", "--ssh-config", "f")]
)
def test_the_command_ends_with_the_code_for_usage(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    assert cli.main(["inspect", *args]) == cli.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{args[1]} does not apply to" in line


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://head:8265", "https://head", "head", "head:x", "h:70000"]
)
@pytest.mark.parametrize("command", ["run", "plan", "resume"])
def test_an_address_that_no_audit_can_use_is_refused_before_anything_is_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, address: str
) -> None:
    arguments = ["latest"] if command == "resume" else ["/core"]
    arguments += [] if command == "plan" else ["-w", str(tmp_path / "w")]
    by_option = program.run(command, *arguments, "--address", address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    by_variable = program.run(command, *arguments)
    for process, source in ((by_option, "--address"), (by_variable, "RAY_ADDRESS")):
        assert (process.returncode, process.stdout) == (cli.USAGE, "")
        (line,) = process.stderr.splitlines()
        assert line.startswith(f"lru-audit: {source}: '{address}' is ")
        assert "give HOST:PORT of the head's GCS" in line
    assert not (tmp_path / "w").exists()
