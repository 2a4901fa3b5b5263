"""The command line end to end, with real cores: published runs, output, messages and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import cli
from pipeline.cli import collecting
from pipeline.fanout import cluster
from pipeline.inventory import Target
from tests.program import run as audit

pytestmark = pytest.mark.usefixtures("embedded_ray")

ROOT = Path(__file__).parents[2]
VMCORES = ROOT / "tests" / "vmcores"
CORES = sorted(path.parent.name for path in VMCORES.glob("*/vmcore"))


def audit_in_child(
    *args: str | Path, env: Mapping[str, str], stdout: int = subprocess.PIPE, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run lru-audit in a process of its own."""
    clean_env = {name: value for name, value in os.environ.items() if not name.startswith(("LRU_AUDIT_", "RAY_"))}
    env = {**clean_env, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "pipeline", *map(str, args)]
    return subprocess.run(
        command, env=env, cwd=cwd, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def warehouse(embedded_ray: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with one run of the bundled cores, a text file, half a core and a path that does not exist."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").write_text("not a core\n")
    core = (VMCORES / CORES[0] / "vmcore").read_bytes()
    (folder / "cut").write_bytes(core[: len(core) // 2])
    bad_cores = [folder / "text", folder / "cut", folder / "absent"]
    process = audit("run", VMCORES, *bad_cores, "--audit", "test", "-w", folder / "warehouse")
    assert process.returncode == cli.SOME_NOT_GOOD, process.stderr
    assert "published " in process.stderr
    positions = [process.stdout.index(name) for name in ("bytedance", "deb510-n4", "deb7-n2")]
    assert positions == sorted(positions), "the ranking, worst first"
    return folder / "warehouse"


def rows(warehouse: Path, query: str) -> list[dict[str, Any]]:
    """Return the rows of a query on a warehouse."""
    process = audit("sql", "-w", warehouse, "--format", "json", query)
    assert process.returncode == 0, process.stderr
    result: list[dict[str, Any]] = json.loads(process.stdout)
    return result


def test_a_core_that_cannot_be_read_is_a_row_with_its_reason(warehouse: Path) -> None:
    failures = {row["target"].split("/")[-1]: row for row in rows(warehouse, "FROM targets WHERE status <> 'ok'")}
    assert {name: row["status"] for name, row in failures.items()} == {
        "text": "bad_core",
        "cut": "bad_core",
        "absent": "unreachable",
    }
    assert "not an ELF core" in failures["text"]["error"]
    assert "no such file" in failures["absent"]["error"]
    assert all(row["memory_bytes"] is None for row in failures.values()), "never a number"


def test_every_bundled_core_is_ok(warehouse: Path) -> None:
    targets = rows(warehouse, "SELECT target, host FROM targets WHERE status = 'ok'")
    assert sorted(row["target"].split("/")[-2] for row in targets) == CORES
    assert sorted(row["host"] for row in targets) == CORES, "the guests are named like their shapes"


@pytest.mark.parametrize("core", CORES)
def test_inspect_and_the_view_say_the_same(warehouse: Path, core: str) -> None:
    """Two implementations of the same sums: Python over one snapshot, SQL over the published tables."""
    process = audit("inspect", VMCORES / core / "vmcore", "--json")
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    (view,) = rows(warehouse, f"FROM host_waste WHERE host = '{core}'")
    for column in view.keys() - {"rank", "run_id", "target"}:
        assert report[column] == view[column], column
    (target,) = rows(warehouse, f"FROM targets WHERE host = '{core}'")
    varying_columns = {"run_id", "target", "started_at", "duration_ms", "reads", "read_bytes", "peak_rss_bytes"}
    varying_columns |= {"input_digest", "carried_from"}  # of runs, which come back to a core
    for column in target.keys() - varying_columns:
        assert report[column] == target[column], column


def test_inspect_shows_the_analysis_on_one_screen() -> None:
    process = audit("inspect", VMCORES / "deb510-n4" / "vmcore")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert len(lines) <= 32
    assert max(map(len, lines)) <= 110
    for words in ("memcg_nr_cache_ids               1,534", "4 nodes * 1534 ids * 32 bytes", "kmalloc-32"):
        assert words in process.stdout


def test_inspect_of_what_cannot_be_read_exits_4_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "core").write_text("nothing")
    process = audit("inspect", tmp_path / "core")
    assert (process.returncode, process.stdout) == (cli.NONE_GOOD, "")
    assert process.stderr.startswith("lru-audit: core: bad_core: ")
    assert len(process.stderr.splitlines()) == 1


def test_a_run_in_which_nothing_is_good_is_published_and_exits_4(tmp_path: Path) -> None:
    (tmp_path / "core").write_text("nothing")
    process = audit("run", tmp_path / "core", "-w", tmp_path / "warehouse", "--quiet")
    assert process.returncode == cli.NONE_GOOD
    assert process.stderr == ""
    assert len(list((tmp_path / "warehouse" / "runs").iterdir())) == 1


def test_report_in_every_format(warehouse: Path, tmp_path: Path) -> None:
    for format_ in ("text", "html", "markdown", "csv", "prometheus"):
        process = audit("report", "-w", warehouse, "--format", format_)
        assert process.returncode == 0, process.stderr
        assert "bytedance" in process.stdout
    output = tmp_path / "report.json"
    assert audit("report", "-w", warehouse, "--format", "json", "-o", output).returncode == 0
    assert json.loads(output.read_text())["host_waste"][0]["host"] == "bytedance"
    assert audit("report", "-w", warehouse, "--format", "parquet", "-o", output).returncode == 0
    assert pq.read_table(output)["host"][0].as_py() == "bytedance"


def test_a_report_has_the_form_that_the_name_of_its_file_says(warehouse: Path, tmp_path: Path) -> None:
    first_bytes = {
        "html": b"<!doctype html>", "md": b"# Run ", "csv": b"rank,", "json": b"{", "parquet": b"PAR1",
        "prom": b"# HELP ", "txt": b"Run ",
    }  # fmt: skip
    for suffix, start in first_bytes.items():
        process = audit("report", "-w", warehouse, "-o", tmp_path / f"waste.{suffix}")
        assert (process.returncode, process.stdout, process.stderr) == (cli.OK, "", "")
        assert (tmp_path / f"waste.{suffix}").read_bytes().startswith(start)
    assert audit("report", "-w", warehouse, "--format", "csv", "-o", tmp_path / "waste.html").returncode == cli.OK
    assert (tmp_path / "waste.html").read_bytes().startswith(b"rank,")


def test_a_threshold_that_is_passed_exits_5_and_what_was_found_is_still_published(tmp_path: Path) -> None:
    core = VMCORES / "bytedance/vmcore"
    option = ("-w", tmp_path / "warehouse")
    process = audit("run", core, *option, "--fail-if", "worst_wasted_pct_of_memory > 75", "--fail-if", "not_good > 0")
    assert process.returncode == cli.THRESHOLD_FIRED, process.stderr
    assert "--fail-if: worst_wasted_pct_of_memory is 76.29, > 75\n" in process.stderr
    assert "not_good" not in process.stderr
    assert [row["wasted_bytes"] for row in rows(option[1], "FROM host_waste")] == [7_989_661_440]
    assert audit("report", *option, "--fail-if", "wasted_bytes > 8GiB").returncode == cli.OK
    assert (
        audit("report", *option, "--fail-if", "wasted_bytes > 7GiB", "--format", "json").returncode
        == cli.THRESHOLD_FIRED
    )


def test_the_estimate_shows_the_commit_messages_figures_and_the_true_cost() -> None:
    process = audit("estimate", "--superblocks", "952", "--nodes", "4", "--cache-ids", "24574")
    assert "3,145,472" in process.stdout
    assert "5,988,978,688" in process.stdout
    # 1904 lists * (256 + 4 * 262,144 + 4 * 24574 * 32)
    assert f"{1904 * (256 + 4 * 262_144 + 4 * 24574 * 32):,}" in process.stdout


def test_the_estimates_bounds_hold_for_the_real_server() -> None:
    """The server is the core with 480 of 24574 ids online. The estimate must promise less than the measured waste."""
    shape = ("--superblocks", "952", "--nodes", "4", "--cache-ids", "24574", "--online-memcgs", "480")
    estimate = json.loads(audit("estimate", *shape, "--json").stdout)
    measurement = json.loads(audit("inspect", VMCORES / "bytedance" / "vmcore", "--json").stdout)
    per_list = measurement["list_lru_bytes"] // measurement["list_lrus"]
    assert estimate["list_lru_bytes"] == 1904 * per_list
    assert estimate["lazy_high_bytes"] / 1904 > measurement["lazy_high_bytes"] / 1905
    assert estimate["wasted_bytes"] < measurement["wasted_bytes"]


def test_the_estimate_for_a_list_lru_one_with_a_lock() -> None:
    """v6.13's list_lru_memcg of 4 nodes: 16 + 4 * 32 = 144 bytes in kmalloc-192, v5.18's 16 + 4 * 24 in kmalloc-128."""
    shape = ("--superblocks", "952", "--nodes", "4", "--cache-ids", "24574", "--online-memcgs", "480", "--json")
    figures = {
        layout: json.loads(audit("estimate", *shape, "--target-layout", layout).stdout) for layout in ("5.18", "6.13")
    }
    assert [figures[layout]["lazy_target"] for layout in figures] == ["v5.18-6.12", "v6.13+"]
    difference = figures["6.13"]["lazy_high_bytes"] - figures["5.18"]["lazy_high_bytes"]
    assert difference == 1904 * 480 * (192 - 128)
    assert figures["6.13"]["list_lru_bytes"] == figures["5.18"]["list_lru_bytes"], "the eager side has no lock"


@pytest.mark.parametrize(("kernel", "gigabytes"), [("6.1", 21), ("6.6", 21), ("6.12", 23), ("7.2", 23)])
def test_the_estimate_shows_what_shrinkers_take_of_what_an_upgrade_gives_back(kernel: str, gigabytes: int) -> None:
    """LKML 2021-04-05: 10,000 containers with 7 mounts each, on 2 nodes."""
    shape = ("--superblocks", "70000", "--nodes", "2", "--cache-ids", "12286", "--online-memcgs", "10000", "--json")
    figures = json.loads(audit("estimate", *shape, "--target-kernel", kernel).stdout)
    assert figures["target_kernel"] == kernel
    assert round(figures["shrinker_info_bytes"] / 1e9) == gigabytes
    assert round(figures["shrinker_map_bytes"] / 1e9, 1) == 0.3


def test_the_newest_run_is_that_of_the_audit(warehouse: Path) -> None:
    run_id = rows(warehouse, "SELECT run_id FROM runs")[0]["run_id"]
    for args in ((), ("--run", "latest"), ("--run", run_id[:12], "--audit", "test")):
        assert run_id in audit("report", "-w", warehouse, *args).stdout
    process = audit("report", "-w", warehouse, "--run", run_id, "--audit", "other")
    assert (process.returncode, process.stdout) == (cli.FAILED, "")
    assert "of audit other" in process.stderr


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "2>&-"])
def test_an_output_that_takes_nothing_is_no_traceback(warehouse: Path, redirection: str) -> None:
    command = f"{sys.executable} -m pipeline sql -w {warehouse} 'FROM runs' {redirection}"
    process = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode in (cli.OK, cli.FAILED)
    assert "Traceback" not in process.stderr
    assert len(process.stderr.splitlines()) <= 1


def test_a_report_is_written_whole_or_not_at_all(warehouse: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.csv"
    output.write_text("the old one")
    process = audit("report", "-w", warehouse, "--run", "nothing", "--format", "csv", "-o", output)
    assert (process.returncode, output.read_text()) == (cli.FAILED, "the old one")
    assert audit("report", "-w", warehouse, "--format", "csv", "-o", output).returncode == cli.OK
    assert output.read_text().startswith("rank,")
    assert [path.name for path in tmp_path.iterdir()] == ["report.csv"]


def test_a_report_goes_into_a_pipe_and_does_not_replace_it(warehouse: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        assert audit("report", "-w", warehouse, "--format", "csv", "-o", pipe).returncode == cli.OK
        assert reader.stdout is not None
        assert reader.stdout.read().startswith("rank,")
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), cli.USAGE, "COMMAND"),
        (("run",), cli.USAGE, "no target given; for example:"),
        (("run", "ssh:-host"), cli.USAGE, "invalid host name"),
        (("run", "host:a"), cli.USAGE, "vmcore:PATH"),
        (("run", "a", "b", "--limit", "c*"), cli.USAGE, "--limit 'c*' selects none of 2 targets"),
        (("plan", "a", "--label", "rack"), cli.USAGE, "Ansible"),
        (("run", "ssh:a", "--ship-drgn"), cli.USAGE, "--drgn-wheels DIR must be given together"),
        (("run", "ssh:a", "--drgn-wheels", "w"), cli.USAGE, "--ship-drgn and"),
        (("inspect", "ray:a"), cli.USAGE, "inspect does not use"),
        (("run", "a", "b", "--audit", "a/b"), cli.USAGE, "letters, digits"),
        (("run", "a", "--timeout", "0"), cli.USAGE, "seconds"),
        (("estimate", "--superblocks", "1", "--nodes", "0", "--cache-ids", "1"), cli.USAGE, "between 1 and 1024"),
        (("estimate", "--superblocks", "1", "--nodes", "1", "--cache-ids", "70000"), cli.USAGE, "65535"),
        (("report", "-w", "/nonexistent"), cli.FAILED, "/nonexistent: no published run; make one with: lru-audit run"),
        (("sql",), cli.USAGE, "one query"),
        (("sql", "-f", "/nonexistent/query.sql"), cli.FAILED, "/nonexistent/query.sql"),
        (("sql", "DROP TABLE runs"), cli.FAILED, "reading statement"),
        (("run", "-i", "/nonexistent/fleet.yaml"), cli.USAGE, "/nonexistent/fleet.yaml"),
        (("inspect", str(VMCORES)), cli.USAGE, "inspect takes one"),
    ],
)
def test_bad_input_is_one_clear_error(args: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    process = audit(*args, cwd=tmp_path)
    assert process.returncode == code, process.stderr
    assert message in process.stderr
    assert not process.stdout


def test_a_cluster_that_cannot_be_joined_is_one_clear_error() -> None:
    process = audit_in_child("plan", "ray:a", "--address", "127.0.0.1:1", env={})
    assert (process.returncode, process.stdout) == (cli.FAILED, "")
    assert "cannot join the Ray cluster at 127.0.0.1:1" in process.stderr
    assert "Traceback" not in process.stderr


def test_an_address_of_local_joins_no_cluster(tmp_path: Path) -> None:
    env = {"RAY_ADDRESS": "127.0.0.1:1"}
    command = ["run", VMCORES / "deb510-n1", "-w", tmp_path, "--quiet"]
    assert audit_in_child(*command, env=env).returncode == cli.FAILED
    assert audit_in_child(*command, "--address", "local", env=env).returncode == cli.OK


def test_what_a_search_leaves_out_is_counted(tmp_path):
    (tmp_path / "vmcore").write_bytes(b"")
    (tmp_path / "notes").write_bytes(b"text")
    (tmp_path / "backup.gz").write_bytes(b"\x1f\x8bdamaged")
    process = audit("plan", tmp_path)
    ignored = "ignored 1 files that are not cores and 1 archives that could not be searched to their end\n"
    assert ignored in process.stderr


def test_plan_shows_what_run_would_audit_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "fleet.csv").write_text(
        "target,name,labels.rack\nssh:root@192.0.2.1,db1,r1\nqmp:vm.sock,vm1,r1\n/core,core,r2\n"
    )
    # In a process of its own, which is not connected to Ray.
    command = ["plan", "live:", "ray:*", "ray:gone", "-i", "fleet.csv", "--timeout", "60"]
    process = audit_in_child(*command, env={}, cwd=tmp_path)
    assert (process.returncode, process.stderr) == (cli.OK, "")
    rows = {line.split()[0]: line for line in process.stdout.splitlines() if line}
    assert rows["db1"].split() == ["db1", "ssh", "ssh:root@192.0.2.1", "python3", "60", "s", "1", "here"]
    assert f"{tmp_path}/vm.sock" in rows["vm1"]
    assert "unreachable: gone is not in the Ray cluster" in rows["gone"]
    assert process.stdout.splitlines()[-1].startswith("6 targets: 1 live, 1 qmp, 2 ray, 1 ssh, 1 vmcore; ")
    assert [path.name for path in tmp_path.iterdir()] == ["fleet.csv"]
    process = audit("plan", "-i", "fleet.csv", "--limit", "*1", "--limit", "rack=r1", cwd=tmp_path)
    assert [line.split()[0] for line in process.stdout.splitlines()[1:3]] == ["db1", "vm1"]
    assert "2 targets" in process.stdout


def test_plan_asks_a_real_cluster_for_its_nodes(embedded_ray: dict[str, str]) -> None:
    (node,) = cluster.nodes()
    env = dict(embedded_ray)
    processes = [audit_in_child("plan", "ray:*", "/core", env=env)]
    address = env.pop("RAY_ADDRESS")
    processes += [audit_in_child("plan", "ray:*", f"ray:{node.ip}", "--address", address, env=env)]
    assert [process.stderr for process in processes] == ["", ""]
    assert f"node {node.host}" in processes[0].stdout
    assert "any node" in processes[0].stdout
    assert f"{node.ip}  ray   ray:{node.ip}" in processes[1].stdout


def test_a_plan_is_checked_by_one_target_of_each_kind(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a core\n")
    for target, code, status in ((VMCORES, cli.OK, "ok"), (tmp_path / "text", cli.NONE_GOOD, "bad_core")):
        process = audit("plan", target, "--check", "--quiet", cwd=tmp_path)
        assert (process.returncode, process.stderr) == (code, "")
        table, _, sample = process.stdout.partition("\n\ntried ")
        assert "at a time" in table
        (row,) = sample.splitlines()[1:]
        assert row.split()[2] == status
    assert audit("plan", VMCORES, "ray:gone", "--check", "--quiet").returncode == cli.SOME_NOT_GOOD
    assert [path.name for path in tmp_path.iterdir()] == ["text"], "nothing is published"


def targets_of(*args: str | Path) -> list[Target]:
    """Return the targets of a `run` command with these arguments."""
    return collecting._targets(cli.parser().parse_args(["run", *map(str, args)]))


def test_options_go_to_the_kinds_that_they_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.csv").write_text("target,via,vmcoreinfo\nqmp:/own.sock,,own\n/c,ssh:h,\n")
    args = ("--ssh-config", "ssh.conf", "--ship-drgn", "--drgn-wheels", "w", "--vmcoreinfo", "note", "-i", "f.csv")
    targets = {target.name: target for target in targets_of("ssh:a", "qmp:/vm.sock", "/core", *args)}
    assert {name for name, target in targets.items() if target.ssh_config == f"{tmp_path}/ssh.conf"} == {"a", "h:/c"}
    assert {name for name, target in targets.items() if target.drgn_wheels == f"{tmp_path}/w"} == {"a", "h:/c"}
    notes = {name: target.vmcoreinfo for name, target in targets.items() if target.vmcoreinfo}
    assert notes == {**dict.fromkeys(("vm", "core", "h:/c"), f"{tmp_path}/note"), "own": f"{tmp_path}/own"}


def test_an_audit_is_called_like_its_inventory() -> None:
    def audit_of(*args: str) -> str:
        return collecting._audit_name(cli.parser().parse_args(["run", *args]))

    assert audit_of("-i", "fleets/web.yaml") == "web"
    assert audit_of("-i", "ansible:inventories/prod.ini") == "prod"
    assert audit_of("-i", "-") == audit_of("/core") == "adhoc"
    assert audit_of("-i", "web.yaml", "--audit", "nightly") == "nightly"


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    process = audit("completion", "bash")
    assert process.returncode == 0, process.stderr
    (tmp_path / "completion").write_text(process.stdout)
    script = """
    source "$1"
    complete -p lru-audit
    completed() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_lru_audit; echo "${COMPREPLY[*]}"; }
    completed lru-audit ins
    completed lru-audit run --fail
    completed lru-audit report --format pro
    cd "$(dirname "$1")"
    completed lru-audit inspect compl
    """
    shell = ["bash", "-c", script, "bash", tmp_path / "completion"]
    lines = subprocess.run(shell, capture_output=True, text=True, check=False).stdout.splitlines()
    assert lines[0].endswith("lru-audit")
    assert [line.strip() for line in lines[1:]] == ["inspect", "--fail-if", "prometheus", "completion"]


def test_help_imports_nothing_slow() -> None:
    code = "import sys; from pipeline import cli\ntry: cli.main(['run', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('ray', 'duckdb', 'pyarrow', 'drgn', 'rich') if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "[]"


def without_a_reader(*args: str | Path, env: Mapping[str, str]) -> tuple[int, str]:
    """Run a command whose stdout is a pipe without a reader; return its exit code and stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    process = audit_in_child(*args, env=env, stdout=writer)
    os.close(writer)
    return process.returncode, process.stderr


def test_a_reader_that_goes_away_gets_no_message(warehouse: Path) -> None:
    for args in (("sql", "--format", "csv", "FROM list_lrus"), ("report",), ("report", "--format", "html")):
        assert without_a_reader(args[0], "-w", warehouse, *args[1:], env={}) == (cli.FAILED, "")


def test_a_run_says_what_it_published_also_where_nobody_reads_on(embedded_ray: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a core\n")
    core = VMCORES / "deb510-n1" / "vmcore"
    for targets, code in (((core,), cli.OK), ((core, tmp_path / "text"), cli.SOME_NOT_GOOD)):
        command = ("run", *targets, "-w", tmp_path / "warehouse", "--quiet")
        assert without_a_reader(*command, env=embedded_ray) == (code, "")
    assert len(rows(tmp_path / "warehouse", "FROM runs")) == 2
