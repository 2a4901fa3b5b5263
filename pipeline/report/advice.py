"""What can be done about the waste that a run found, each step with the bytes that it frees."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.common.text import human_bytes, printable
from pipeline.report.model import Report

_MOST_RELEASES = 3


class Step(NamedTuple):
    """A step and its price.

    :ivar frees_bytes: what it frees, or for a growth that is near what it will cost; null where it has no price.
    """

    action: str
    frees_bytes: int | None
    text: str


def steps(report: Report) -> list[Step]:
    """Return the steps for the hosts of a run, always in the same order; none where nothing is wasted."""
    found = report.advice
    if not found.get("eager_hosts"):
        return []
    return [step for step in (_lazy(found), _nokmem(found), _mounts(found), _dead_ids(found), _doubling(found)) if step]


def _lazy(found: dict[str, Any]) -> Step:
    have = ""
    if found["lazy"]:
        hosts = sum(row["hosts"] for row in found["lazy"])
        names = [printable(row["kernel_release"]) for row in found["lazy"][:_MOST_RELEASES]]
        others = len(found["lazy"]) - len(names)
        *first, last = [*names, _count(others, "other")] if others else names
        have = f" {_count(hosts, 'host')} of this run already {_verb(hosts, 'runs', 'run')} one: "
        have += f"{', '.join(first)} and {last}." if first else f"{last}."
    few = ""
    if found["few_hosts"] < found["eager_hosts"]:
        worst = "the worst alone" if found["few_hosts"] == 1 else f"the worst {found['few_hosts']:,} alone"
        few = f", {worst} {human_bytes(found['few_bytes'])}"
    return Step(
        "lazy_kernel",
        found["wasted_bytes"],
        f"Reboot {_count(found['eager_hosts'], 'host')} into a kernel that allocates list_lrus lazily (Linux 5.18, "
        f"RHEL 9.1, UEK7 U1): frees {'at least ' if found['lower_bound'] else ''}{human_bytes(found['wasted_bytes'])}"
        f"{few}.{have}",
    )


def _nokmem(found: dict[str, Any]) -> Step:
    return Step(
        "nokmem",
        found["nokmem_bytes"],
        f"Or boot them with cgroup.memory=nokmem: frees {human_bytes(found['nokmem_bytes'])}. The price: what the "
        "kernel allocates for a cgroup is no longer charged to it: its limit holds dentries and inodes no more.",
    )


def _mounts(found: dict[str, Any]) -> Step | None:
    kind = found["mounts"]
    if not kind or not kind["list_lru_bytes"]:
        return None
    each = kind["worst_bytes"] // kind["worst_superblocks"]
    return Step(
        "mounts",
        kind["list_lru_bytes"],
        f"Unmount what is not needed: {_count(kind['superblocks'], printable(kind['fstype']) + ' filesystem')} on "
        f"{_count(kind['hosts'], 'host')} hold {human_bytes(kind['list_lru_bytes'])}, each of the "
        f"{kind['worst_superblocks']:,} on {printable(kind['worst_target'])} {human_bytes(each)}, given back at once.",
    )


def _dead_ids(found: dict[str, Any]) -> Step | None:
    if not found["dead_ids"]:
        return None
    churn = found["churn"]
    where = ""
    if churn:
        dying = f"{churn['dying_children']:,} of its children {_verb(churn['dying_children'], 'is', 'are')} dying"
        how_much = f"its directory changed {_count(churn['dir_rev'], 'time')}" if churn["dir_rev"] else dying
        where = (
            f" Most cgroups come and go below {printable(churn['path'])} on {printable(churn['target'])}: {how_much}."
        )
    return Step(
        "churn",
        found["reboot_bytes"],
        f"Stop cgroup churn: {_count(found['dead_ids'], 'id')} on {_count(found['dead_ids_hosts'], 'host')} belong to "
        f"no online cgroup and hold {human_bytes(found['dead_ids_bytes'])}. They are used again but never given back: "
        f"fewer cgroups at once keep the ids from growing, and a reboot frees {human_bytes(found['reboot_bytes'])} "
        f"until they have grown again.{where}",
    )


def _doubling(found: dict[str, Any]) -> Step | None:
    if not found["next_hosts"]:
        return None
    return Step(
        "doubling",
        None,
        f"Expect growth: {_count(found['next_hosts'], 'host')} {_verb(found['next_hosts'], 'has', 'have')} less than a "
        f"tenth of their ids left; the next doubling costs {human_bytes(found['next_bytes'])} in all.",
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _verb(number: int, one: str, many: str) -> str:
    return one if number == 1 else many
