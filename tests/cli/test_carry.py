"""Nightly runs over real cores: a core that has not changed is not read again, and copies of a core count once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.fanout import cluster
from pipeline.warehouse import Staging

VMCORES = Path(__file__).parents[1] / "vmcores"


@pytest.fixture(scope="module", autouse=True)
def embedded_ray() -> Iterator[None]:
    with cluster.connection(2):
        yield


class Nights:
    """A directory of cores, and the runs over it. The cores are links to bundled ones, which nothing changes."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.cores = folder / "cores"
        self.warehouse = folder / "warehouse"
        self._capsys = capsys

    def link(self, name: str, core: str) -> None:
        """Make a name stand for a bundled core."""
        path = self.cores / name / "vmcore"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(VMCORES / core / "vmcore")

    def copy(self, name: str, core: str) -> None:
        """Copy a bundled core: another link to it would not be another target."""
        (self.cores / name).mkdir(parents=True)
        shutil.copyfile(VMCORES / core / "vmcore", self.cores / name / "vmcore")

    def command(self, *args: str) -> tuple[int, str, str]:
        """Run a command and return its exit code, stdout and stderr."""
        code = cli.main([*args, "-w", str(self.warehouse)])
        return code, *self._capsys.readouterr()

    def run(self, *options: str, audit: str = "crash") -> tuple[int, str, str]:
        return self.command("run", str(self.cores), "--audit", audit, *options)

    def rows(self, query: str) -> list[dict[str, Any]]:
        code, stdout, stderr = self.command("sql", "--format", "json", query)
        assert code == cli.OK, stderr
        result: list[dict[str, Any]] = json.loads(stdout)
        return result

    def carried(self) -> dict[str, str | None]:
        """Return carried_from by target of the run that was published last."""
        newest = "(SELECT max_by(run_id, finished_at) FROM runs)"
        return {
            row["target"]: row["carried_from"]
            for row in self.rows(f"SELECT target, carried_from FROM targets WHERE run_id = {newest} ORDER BY target")
        }

    def run_ids(self) -> list[str]:
        return [row["run_id"] for row in self.rows("SELECT run_id FROM runs ORDER BY finished_at")]


@pytest.fixture
def nights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Nights:
    nights = Nights(tmp_path, capsys)
    nights.link("one", "deb510-n1")
    nights.link("two", "deb61-n2")
    return nights


def test_only_changed_and_new_cores_are_read(nights: Nights) -> None:
    _, first_text, stderr = nights.run()
    assert "not changed" not in stderr
    assert nights.carried() == {"one/vmcore": None, "two/vmcore": None}
    (first,) = nights.run_ids()

    code, second_text, stderr = nights.run()
    assert code == cli.OK
    note = "are cores that have not changed since run"
    assert f"2 of 2 targets {note} {first} and were not read; run --again reads them\n" in stderr
    assert nights.carried() == {"one/vmcore": first, "two/vmcore": first}
    assert second_text.splitlines()[2:] == first_text.splitlines()[2:], "the figures, the ranking and the advice"

    nights.link("two", "deb7-n2")
    nights.link("three", "deb61-n2")
    _, _, stderr = nights.run()
    *_, second, _ = nights.run_ids()
    assert f"1 of 3 targets {note} {second} and" in stderr
    assert nights.carried() == {"one/vmcore": first, "three/vmcore": None, "two/vmcore": None}
    releases = {row["target"]: row["kernel_release"] for row in nights.rows("FROM host_waste")}
    assert releases["two/vmcore"].startswith("7.2.")
    code, _, stderr = nights.command("verify")
    assert (code, "problems: 0" in stderr) == (cli.OK, True)


def test_all_are_read_with_again_and_redact_and_after_it_with_other_options_and_in_another_audit(
    nights: Nights,
) -> None:
    nights.run()
    for options, audit in (
        (("--again",), "crash"),
        (("--redact",), "crash"),
        ((), "crash"),  # a row of a redacted run has pseudonyms
        (("--no-charged",), "crash"),
        ((), "other"),
    ):
        _, _, stderr = nights.run(*options, audit=audit)
        assert "not changed" not in stderr, (options, audit)
        assert set(nights.carried().values()) == {None}, (options, audit)
    nights.run("--no-charged")
    assert None not in nights.carried().values()


def test_a_resumed_run_keeps_what_it_carried_and_carries_the_rest(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.run()
    (first,) = nights.run_ids()
    nights.link("three", "deb7-n2")
    append = Staging.append

    def interrupted_append(staging: Staging, outcome: dict[str, Any]) -> None:
        append(staging, outcome)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "append", interrupted_append)
        code, _, stderr = nights.run()
    assert (code, "1 of 3 targets were collected and are kept" in stderr) == (cli.INTERRUPTED, True)
    code, _, stderr = nights.command("resume", "latest")
    assert code == cli.OK
    assert f"2 of 3 targets are cores that have not changed since run {first} and" in stderr
    assert nights.carried() == {"one/vmcore": first, "three/vmcore": None, "two/vmcore": first}


def test_a_core_under_two_paths_counts_once_in_the_advice_and_says_whose_it_is(nights: Nights) -> None:
    nights.run()
    (alone,) = nights.rows("SELECT sum(wasted_bytes)::BIGINT AS wasted_bytes FROM upgrade_plan(1000000000000)")
    nights.copy("a/copy", "deb510-n1")
    _, text, _ = nights.run()
    assert "3 targets of 2 hosts waste" in text
    assert "These sums include 1 copy of the same core; the advice counts each host once." in " ".join(text.split())
    assert "one/vmcore (same core as a/copy/vmcore)" in text
    assert "Reboot 1 host into" in " ".join(text.split())
    assert nights.rows("SELECT sum(wasted_bytes)::BIGINT AS wasted_bytes FROM upgrade_plan(1000000000000)") == [alone]
    ids = {row["target"]: row["core_id"] for row in nights.rows("SELECT target, core_id FROM latest_targets")}
    assert len(set(ids.values())) == 2
    _, html, _ = nights.command("report", "--format", "html")
    assert html.count("one/vmcore (same core as a/copy/vmcore)") == 2, "in the table and in the script's rows"
    _, report, _ = nights.command("report", "--format", "json")
    copies = {row["target"]: row["same_core_as"] for row in json.loads(report)["core_copies"]}
    assert copies == {"one/vmcore": "a/copy/vmcore"}
    assert json.loads(report)["totals"]["copies"] == 1
