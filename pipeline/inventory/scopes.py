"""The targets that each option applies to. An option that does not apply is refused: ignored, it would seem heeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.common.errors import UsageError
from pipeline.common.text import quote

if TYPE_CHECKING:
    from pipeline.inventory.target import Target


class Scope(NamedTuple):
    """The targets that an option applies to.

    - covers: whether it applies to a target;
    - targets: those targets in words;
    - reason: why it does not apply to others, or what does.
    """

    covers: Callable[[Target], bool]
    targets: str
    reason: str

    def refusal(self, option: str) -> str:
        return f"{option} is for {self.targets}; {self.reason}"


def _is_core_or_guest(target: Target) -> bool:
    return target.kind in ("vmcore", "qmp")


def _is_over_ssh(target: Target) -> bool:
    return target.over_ssh


_EVERY = Scope(lambda target: True, "every target", "")

# Keys of an inventory, and options of the command line by the field of Target that they set.
SCOPES: Mapping[str, Scope] = {
    "target": _EVERY,
    "name": Scope(lambda target: target.source != "ray:*", "one target", "ray:* is every node of the Ray cluster"),
    "labels": _EVERY,
    "via": Scope(
        _is_core_or_guest,
        "cores and QEMU guests",
        "live: is this machine, ray: already runs on the node itself, ssh: on the host itself (for a jump host set "
        "ProxyJump in ssh's configuration)",
    ),
    "become": Scope(_is_over_ssh, "hosts that ssh reaches", "elsewhere start lru-audit, or Ray, as root"),
    "python": _EVERY,
    "timeout_s": _EVERY,
    # The three sources of types exclude each other, except that a core without BTF has none of the first two.
    "vmlinux": Scope(lambda target: target.debug_dir is None, "targets without debug_dir", "give one of the two"),
    "debug_dir": Scope(lambda target: target.vmlinux is None, "targets without vmlinux", "give one of the two"),
    "btf_dir": Scope(
        lambda target: target.vmlinux is None and target.debug_dir is None,
        "targets without vmlinux and debug_dir",
        "their types come from DWARF",
    ),
    "vmcoreinfo": Scope(_is_core_or_guest, "cores and QEMU guests", "a running kernel has its own in /proc/kcore"),
    "ssh_config": Scope(_is_over_ssh, "hosts that ssh reaches", "the others are collected without ssh"),
    "ship_python": Scope(_is_over_ssh, "hosts that ssh reaches", "elsewhere install python3"),
    "drgn_wheels": Scope(_is_over_ssh, "hosts that ssh reaches", "elsewhere install drgn with pip"),
    "charged": _EVERY,
    "target_kernel": _EVERY,
    "target_layout": Scope(
        lambda target: target.target_kernel is None, "targets without target_kernel", "it is the older form of that"
    ),
    "verify": _EVERY,
    "max_reads": _EVERY,
}


def refusals(target: Target, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each key of an inventory that does not apply to its target, and the reason."""
    for key in keys:
        if key in SCOPES and not SCOPES[key].covers(target):
            yield key, SCOPES[key].refusal(key)


def apply(options: Mapping[str, Any], targets: Iterable[Target]) -> list[Target]:
    """Return targets with those of the options that apply to them; what a target has by itself takes precedence.

    :param options: value by field of Target.
    :raises UsageError: an option applies to no target.
    """
    completed_targets = []
    ordered_options = [option for option in SCOPES if option in options]
    used_options = set()
    for target in targets:
        for option in ordered_options:
            if SCOPES[option].covers(target):
                used_options.add(option)
                if not getattr(target, option):
                    target = replace(target, **{option: options[option]})
        completed_targets.append(target)
    for option in ordered_options:
        if option not in used_options:
            count = len(completed_targets)
            receiver = quote(completed_targets[0].name) if count == 1 else f"any of the {count} targets"
            flag = "--" + option.replace("_", "-")
            raise UsageError(f"{flag} does not apply to {receiver}; {SCOPES[option].refusal('it')}")
    return completed_targets
