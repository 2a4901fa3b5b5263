"""Advice against the waste of a run: a list of steps, each with the bytes that it frees."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.common.text import counted, human_bytes, printable
from pipeline.report import waste
from pipeline.report.model import Report

_MAX_RELEASES = 3
# shrinker_info of an upgraded kernel is named above this many bytes, or this share of the bytes that the upgrade frees.
_NAMED_SHRINKER_INFO_BYTES = 100 << 20
_NAMED_SHRINKER_INFO_SHARE = 0.01


class Step(NamedTuple):
    """One step of the advice.

    :ivar frees_bytes: bytes that the step frees; null where that is not known, and for an expected growth, which frees
        nothing.
    """

    action: str
    frees_bytes: int | None
    text: str


def steps(report: Report) -> list[Step]:
    """Return the steps for the hosts of a run, always in the same order; empty if there is nothing to free."""
    figures = report.advice
    candidates = [_detached_step(figures), _dying_step(figures)]
    if figures.get("eager_hosts"):
        candidates = [
            _lazy_kernel_step(figures),
            _nokmem_step(figures),
            _mounts_step(figures),
            *candidates,
            _churn_step(figures),
            _doubling_step(figures),
        ]
    return [step for step in candidates if step]


def _lazy_kernel_step(figures: dict[str, Any]) -> Step:
    lazy_hosts = ""
    if figures["lazy"]:
        hosts = sum(row["hosts"] for row in figures["lazy"])
        releases = [printable(row["kernel_release"]) for row in figures["lazy"][:_MAX_RELEASES]]
        other_count = len(figures["lazy"]) - len(releases)
        *first, last = [*releases, counted(other_count, "other")] if other_count else releases
        lazy_hosts = f" {counted(hosts, 'host')} of this run already {_verb(hosts, 'runs', 'run')} one: "
        lazy_hosts += f"{', '.join(first)} and {last}." if first else f"{last}."
    worst_hosts = ""
    if figures["few_hosts"] < figures["eager_hosts"]:
        subject = "the worst alone" if figures["few_hosts"] == 1 else f"the worst {figures['few_hosts']:,} alone"
        worst_hosts = f", {subject} {human_bytes(figures['few_bytes'])}"
    return Step(
        "lazy_kernel",
        figures["wasted_bytes"],
        f"Reboot {counted(figures['eager_hosts'], 'host')} into a kernel that allocates list_lrus lazily (Linux 5.18, "
        f"RHEL 9.1, UEK7 U1): frees {waste.text(figures['wasted_bytes'], figures['lower_bound'])}"
        f"{worst_hosts}.{_net_sentences(figures)}{lazy_hosts}",
    )


def _net_sentences(figures: dict[str, Any]) -> str:
    """Return what the upgrade frees and takes of all that memory cgroups cost; empty if that is not predicted."""
    net = figures["net"]
    if not net:
        return ""
    kernels = " or ".join(map(printable, net["target_kernels"]))
    of_hosts = f" of {net['hosts']:,} of them" if net["hosts"] < figures["eager_hosts"] else ""
    at_least, at_most = ("at least ", "at most ") if net["lower_bound"] else ("", "")
    text = (
        f" With all else that memory cgroups cost, an upgrade{of_hosts} to Linux {kernels} frees "
        f"{at_least}{human_bytes(net['frees_bytes'])} and takes {at_most}{human_bytes(net['takes_bytes'])}: "
        f"net {waste.text(net['net_bytes'], net['lower_bound'], error_bytes=net['lazy_error_bytes'])}."
    )
    if net["shrinker_info_bytes"] > min(_NAMED_SHRINKER_INFO_BYTES, _NAMED_SHRINKER_INFO_SHARE * net["frees_bytes"]):
        text += (
            f" After the upgrade memcgs * mounts * nodes cost {human_bytes(net['shrinker_info_bytes'])} in "
            "shrinker_info."
        )
    return text


def _nokmem_step(figures: dict[str, Any]) -> Step:
    return Step(
        "nokmem",
        figures["nokmem_bytes"],
        f"Or boot them with cgroup.memory=nokmem: frees {human_bytes(figures['nokmem_bytes'])}. The price: kernel "
        "memory (dentries, inodes) no longer counts towards a cgroup's limit.",
    )


def _mounts_step(figures: dict[str, Any]) -> Step | None:
    mounts = figures["mounts"]
    if not mounts or not mounts["list_lru_bytes"]:
        return None
    superblock_bytes = mounts["worst_bytes"] // mounts["worst_superblocks"]
    return Step(
        "mounts",
        mounts["list_lru_bytes"],
        "Unmount filesystems that are not needed: "
        f"{counted(mounts['superblocks'], printable(mounts['fstype']) + ' filesystem')} on "
        f"{counted(mounts['hosts'], 'host')} hold {human_bytes(mounts['list_lru_bytes'])}, each of the "
        f"{mounts['worst_superblocks']:,} on {printable(mounts['worst_target'])} {human_bytes(superblock_bytes)}. "
        "Unmounting frees it at once.",
    )


def _detached_step(figures: dict[str, Any]) -> Step | None:
    detached = figures["detached"]
    if not detached:
        return None
    noun = "filesystem" if detached["fstypes"] > 1 else f"{printable(detached['fstype'])} filesystem"
    verb = _verb(detached["superblocks"], "is", "are")
    worst_host = ""
    if detached["hosts"] > 1:
        worst_host = f", {detached['worst_superblocks']:,} of them on {printable(detached['worst_target'])}"
    return Step(
        "detached",
        detached["list_lru_bytes"],
        f"End what holds {counted(detached['superblocks'], noun)} that {verb} unmounted but still in use on "
        f"{counted(detached['hosts'], 'host')}{worst_host}: frees {human_bytes(detached['list_lru_bytes'])} at once. "
        "Open files, working directories (lsof, by the device in superblocks.s_dev), loop devices (losetup -l) and the "
        "layers of an overlay hold them.",
    )


def _dying_step(figures: dict[str, Any]) -> Step | None:
    dying = figures["dying"]
    if not dying:
        return None
    worst = ""
    if dying["worst_path"] is not None:
        if dying["worst_deleted"]:
            remedy = "it is deleted, end what still has it open or mapped (lsof +L1)"
        elif dying["worst_cause"] == "shmem":
            remedy = "delete what is not needed"
        else:
            remedy = "write it back and drop its cache"
        files = "" if dying["worst_files"] == 1 else f" in {dying['worst_files']:,} files"
        worst = (
            f" The largest part is of {printable(dying['worst_path'])} on {printable(dying['worst_target'])}, "
            f"{human_bytes(dying['worst_bytes'])}{files}: {remedy}."
        )
    return Step(
        "dying",
        dying["dying_bytes"],
        f"Free the page cache that keeps removed cgroups: {human_bytes(dying['page_cache_bytes'])} of files is charged "
        f"to cgroups that are gone, on {counted(dying['hosts'], 'host')} with up to "
        f"{counted(dying['dying_memcgs'], 'such cgroup')}.{worst} Linux 7.1 and newer frees such cgroups by itself.",
    )


def _churn_step(figures: dict[str, Any]) -> Step | None:
    if not figures["dead_ids"]:
        return None
    churn = figures["churn"]
    location = ""
    if churn:
        dying = f"{churn['dying_children']:,} of its children {_verb(churn['dying_children'], 'is', 'are')} dying"
        evidence = f"its directory changed {counted(churn['dir_rev'], 'time')}" if churn["dir_rev"] else dying
        location = (
            f" Most cgroups come and go below {printable(churn['path'])} on {printable(churn['target'])}: {evidence}."
        )
    return Step(
        "churn",
        figures["reboot_bytes"],
        f"Stop cgroup churn: {counted(figures['dead_ids'], 'id')} on {counted(figures['dead_ids_hosts'], 'host')} "
        f"belong to no online cgroup and hold {human_bytes(figures['dead_ids_bytes'])}. The kernel reuses ids but "
        "never frees their memory: fewer cgroups at a time keep the ids from growing, and a reboot frees "
        f"{human_bytes(figures['reboot_bytes'])} until they have grown again.{location}",
    )


def _doubling_step(figures: dict[str, Any]) -> Step | None:
    if not figures["next_hosts"]:
        return None
    growing_hosts = ""
    if figures["growing_hosts"]:
        growing_hosts = f" On {counted(figures['growing_hosts'], 'host')} it was under way: the cost is what was left."
    return Step(
        "doubling",
        None,
        f"Expect growth: {counted(figures['next_hosts'], 'host')} {_verb(figures['next_hosts'], 'has', 'have')} less "
        f"than a tenth of their ids left; the next doubling costs {human_bytes(figures['next_bytes'])} in all."
        f"{growing_hosts}",
    )


def _verb(number: int, singular: str, plural: str) -> str:
    return singular if number == 1 else plural
