"""Transports: the collector's command line for each kind of target."""

from __future__ import annotations

import pytest

from pipeline.fanout import transports
from pipeline.inventory import Target


def test_a_core_is_read_by_this_python_and_has_to_be_there():
    command = transports.command(Target("a", "vmcore", "/cores/a"))
    assert command.args == ["/cores/a"]
    assert (command.program, command.stdin) == (None, None)
    assert command.required_file == "/cores/a"


def test_live_is_the_nodes_own_kernel_and_needs_no_file():
    command = transports.command(Target("a", "live", "live:"))
    assert command.args == ["live:"]
    assert (command.program, command.required_file) == (None, None)


def test_a_guest_is_a_monitors_socket_and_takes_vmcoreinfo():
    command = transports.command(Target("a", "qmp", "/run/a.sock", vmcoreinfo="/note"))
    assert command.args == ["--vmcoreinfo", "/note", "qmp:/run/a.sock"]
    assert (command.program, command.required_file) == (None, None)


def test_the_targets_own_python_and_debug_info_are_passed_on():
    target = Target("a", "vmcore", "/a", vmlinux="/vmlinux", debug_dir="/debug", python="/opt/python")
    command = transports.command(target)
    assert command.program == ["/opt/python", "-m", "pipeline.collector"]
    assert command.args == ["--vmlinux", "/vmlinux", "--debug-dir", "/debug", "/a"]


@pytest.mark.parametrize(
    ("options", "args"),
    [
        ({}, []),
        ({"charged": True}, ["--charged"]),
        ({"charged": False, "target_layout": "6.13"}, ["--no-charged", "--target-layout", "6.13"]),
        ({"target_kernel": "7.2"}, ["--target-kernel", "7.2"]),
        ({"verify": True}, ["--verify"]),
    ],
)
def test_what_to_read_and_to_estimate_is_the_collectors_choice_unless_said(options, args):
    target = Target("a", "live", "live:", **options)
    assert transports.command(target).args == [*args, "live:"]
