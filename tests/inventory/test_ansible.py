"""Ansible's inventories: compared with what Ansible itself makes of them, and a host that cannot be used alone."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import inventory
from pipeline.inventory import InventoryError, Target, Targets, destination, plan, scopes

HOSTS = """\
localhost ansible_connection=local
lonely.example
[web]
web[1:2].example ansible_port=2222 ansible_become=yes rack=r1 racks='[1]'
[db]
db1 ansible_host=fe80::1 ansible_user=root ansible_python_interpreter=/usr/bin/python3.9 password=hunter2
db2 ansible_ssh_host=10.0.0.2 ansible_python_interpreter=auto_silent rack=7
[prod:children]
web
db
[prod:vars]
ansible_ssh_common_args=-oProxyJump=bastion
"""
WEB = {"group.prod": "true", "group.web": "true"}
DB = {"group.db": "true", "group.prod": "true"}
JUMP = ("-oProxyJump=bastion",)
ANSIBLE = [
    Target("db1", "ssh", "ssh:root@[fe80::1]", labels=DB, python="/usr/bin/python3.9", ssh_args=JUMP),
    Target("db2", "ssh", "ssh:10.0.0.2", labels=DB | {"rack": "7"}, ssh_args=JUMP),
    Target("localhost", "live", "live:"),
    Target("lonely.example", "ssh", "ssh:lonely.example"),
    Target("web1.example", "ssh", "ssh:web1.example:2222", labels=WEB | {"rack": "r1"}, become=True, ssh_args=JUMP),
    Target("web2.example", "ssh", "ssh:web2.example:2222", labels=WEB | {"rack": "r1"}, become=True, ssh_args=JUMP),
]


@pytest.fixture(autouse=True, scope="module")
def _ansible_on_path() -> Iterator[None]:
    """Put the programs of this virtualenv on PATH, Ansible's among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def ansible() -> None:
    if shutil.which("ansible") is None:
        pytest.skip("needs ansible-core")


@pytest.fixture(scope="module")
def listing(ansible: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of `ansible-inventory --list` for HOSTS."""
    file = tmp_path_factory.mktemp("ansible") / "hosts"
    file.write_text(HOSTS)
    command = ["ansible-inventory", "--list", "-i", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def names(targets: Targets) -> list[str]:
    return [target.name for target in targets]


def unusable(targets: Targets) -> dict[str, str | None]:
    """Return the reasons of the targets that cannot be used, by name."""
    return {target.name: target.unusable for target in targets if target.unusable}


def load_json(folder: Path, *labels: str, limit: tuple[str, ...] = (), **variables: dict[str, object]) -> Targets:
    """Return the targets of the JSON of hosts with these variables."""
    file = write(folder / "fleet.json", json.dumps(make_listing(**variables)))
    return inventory.load([], file, labels=labels, limit_patterns=limit)


def make_listing(**variables: dict[str, object]) -> dict[str, object]:
    """Return what `ansible-inventory --list` prints for hosts with these variables."""
    return {"_meta": {"hostvars": variables}, "all": {"children": ["ungrouped"]}}


def json_errors(folder: Path, listing: object) -> list[str]:
    file = write(folder / "fleet.json", json.dumps(listing))
    with pytest.raises(InventoryError) as info:
        inventory.load([], file)
    return [error.removeprefix(f"{file}:") for error in info.value.errors]


# The inventory as a whole


def test_the_inventory_is_read_through_ansibles_own_program(listing, tmp_path, monkeypatch):
    file = write(tmp_path / "hosts.ini", HOSTS)
    assert inventory.load([], f"ansible:{file}", labels=["rack"]) == ANSIBLE
    monkeypatch.chdir(tmp_path)
    assert names(inventory.load(["/core"], "ansible:hosts.ini", limit_patterns=["group.db=true"])) == ["db1", "db2"]


def test_what_ansible_inventory_printed_is_told_by_its_structure(listing, tmp_path, monkeypatch):
    assert inventory.load([], write(tmp_path / "fleet.json", listing), labels=["rack"]) == ANSIBLE
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listing.encode())))
    assert inventory.load([], "-", labels=["rack"]) == ANSIBLE


def test_variables_are_never_stored_unless_asked_for(listing, tmp_path):
    file = write(tmp_path / "fleet.json", listing)
    assert "hunter2" in listing
    assert "hunter2" not in repr(inventory.load([], file))
    with pytest.raises(InventoryError, match=r"no host has a variable 'rak'") as info:
        inventory.load([], file, labels=["rak", "racks"])
    assert "hunter2" not in str(info.value)


@pytest.mark.parametrize(
    ("listing", "problem"),
    [
        ({"all": {}}, "no _meta.hostvars"),
        ({"_meta": {"hostvars": []}}, "no _meta.hostvars"),
        ({"_meta": {"hostvars": {}}, "web": ["a"]}, "must be an object"),
        ({"_meta": {"hostvars": {}}, "web": {"hosts": [1]}}, "must be a list of names"),
        ({"_meta": {"hostvars": {}}, "web": {"hosts": ["a"], "vars": {"password": "hunter2"}}}, "--export"),
        ({"_meta": {"hostvars": {}}}, "no target given"),
    ],
)
def test_what_ansible_does_not_print_is_one_error(tmp_path, listing, problem):
    (error,) = json_errors(tmp_path, listing)
    assert problem in error
    assert "hunter2" not in error


def test_groups_that_hold_each_other_end(tmp_path):
    listing = {**make_listing(), "a": {"children": ["b"], "hosts": ["h"]}, "b\a": {"children": ["a"]}}
    (target,) = inventory.load([], write(tmp_path / "f.json", json.dumps(listing)))
    assert target.labels == {"group.a": "true", r"group.b\x07": "true"}


def test_what_ansible_inventory_cannot_read_is_one_error_with_all_that_it_says(ansible, tmp_path):
    file = write(tmp_path / "hosts", "garbage: {\n")
    with pytest.raises(InventoryError) as info:
        inventory.load([], f"ansible:{file}")
    (error,) = info.value.errors
    assert error.startswith(f"ansible:{file}: ansible-inventory: ")
    assert "Completely failed to parse" in error
    assert error.endswith(f"see `ansible-inventory --list -i {file}`")
    with pytest.raises(InventoryError, match="no such file"):
        inventory.load([], f"ansible:{file}.gone")


def test_without_ansible_an_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    remedy = "not on PATH: install ansible-core, or give -i hosts.json, made by `ansible-inventory --list -i "
    with pytest.raises(InventoryError, match=remedy):
        inventory.load([], f"ansible:{write(tmp_path / 'hosts', 'a')}")


def test_a_label_without_ansible_is_an_error(tmp_path):
    for file in (None, write(tmp_path / "f.csv", "target\nssh:a\n")):
        with pytest.raises(InventoryError, match="--label names variables of Ansible's hosts"):
            inventory.load(["/a"], file, labels=["rack"])


# Templates and vaults


@pytest.fixture(scope="module")
def fleet(ansible: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inventory with all that Ansible fills in, and with what it does not."""
    folder = tmp_path_factory.mktemp("fleet")
    password = write(folder / "password", "correct horse")
    vault = ["ansible-vault", "encrypt_string", "--vault-password-file", str(password), "--name", "ansible_user"]
    encrypted = subprocess.run([*vault, "auditor"], capture_output=True, text=True, check=True).stdout
    write(folder / "group_vars/vaulted.yml", encrypted)
    write(folder / "group_vars/web.yml", "ansible_host: '{{ inventory_hostname }}.{{ zone }}'\nzone: z.example\n")
    write(folder / "group_vars/db.yml", "ansible_host: '{{ only_in_a_playbook }}'\nrack: '{{ unknown }}'\n")
    write(folder / "addresses/ok1", "192.0.2.1")
    lookup = f"{{{{ lookup('file', '{folder}/addresses/' + inventory_hostname) }}}}"
    write(folder / "group_vars/looked_up.yml", json.dumps({"ansible_host": lookup}))
    write(folder / "host_vars/odd.yml", "ansible_port: '{{ 2200 + 22 }}'\nansible_become: '{{ 1 == 1 }}'\n")
    write(folder / "host_vars/leak.yml", "password: hunter2\nansible_port: '{{ password }}'\n")
    hosts = "[web]\nweb[1:3]\n[db]\ndb[001:500]\n[vaulted]\nvault[1:2]\n[looked_up]\nok1\ngone1\n[others]\nodd\nleak\n"
    write(folder / "hosts.ini", hosts + "web1 rack={{zone}}-1\n")
    return folder


def test_ansible_fills_in_templates_and_vaults_and_what_is_left_is_a_host_of_its_own(fleet, monkeypatch, tmp_path):
    ssh = write(tmp_path / "ssh", f'#!/bin/sh\n[ "$*" = "-o ControlPersist" ] || touch {tmp_path}/contacted\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(fleet / "password"))
    targets = inventory.load([], f"ansible:{fleet}/hosts.ini", labels=["rack"])
    assert not (tmp_path / "contacted").exists()
    sources = {target.name: target.source for target in targets if not target.unusable}
    assert sources == {
        **{name: f"ssh:{name}.z.example" for name in ("web1", "web2", "web3")},
        "vault1": "ssh:auditor@vault1",
        "vault2": "ssh:auditor@vault2",
        "ok1": "ssh:192.0.2.1",
        "odd": "ssh:odd:2222",
    }
    assert next(target.become for target in targets if target.name == "odd")
    assert next(target.labels["rack"] for target in targets if target.name == "web1") == "z.example-1"
    reasons = unusable(targets)
    assert reasons.keys() == {*(f"db{number:03}" for number in range(1, 501)), "gone1", "leak"}
    assert "ansible_host is a template" in str(reasons["db500"])
    command = f"ansible db500 -i {fleet}/hosts.ini -m debug -a var=ansible_host"
    assert "'{{ only_in_a_playbook }}', which Ansible" in str(reasons["db500"])
    assert str(reasons["db500"]).endswith(f": see `{command}`")
    process = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    assert "only_in_a_playbook" in process.stdout
    assert "lookup('...', '...' + inventory_hostname)" in str(reasons["gone1"])
    assert reasons["leak"] == "ansible_port: what Ansible fills in cannot be used"
    assert "hunter2" not in repr(targets)
    assert len(targets.notes) == 4
    assert all(sum(name in note for note in targets.notes) == 1 for name in ("gone1", "leak"))
    assert {note.rpartition(": ")[2] for note in targets.notes if "db001" in note} == {
        "db001, db002, db003 and 497 more"
    }


def test_a_vault_without_its_password_is_one_host_and_never_quoted(fleet):
    targets = inventory.load([], f"ansible:{fleet}/hosts.ini", limit_patterns=["vault1", "web2"])
    ((name, reason),) = unusable(targets).items()
    assert (name, len(targets)) == ("vault1", 2)
    assert reason == (
        "ansible_user is encrypted by ansible-vault, and Ansible does not decrypt it: "
        "set ANSIBLE_VAULT_PASSWORD_FILE, or write it in clear"
    )


def test_a_label_that_limit_asks_for_is_filled_in_first(fleet):
    targets = inventory.load([], f"ansible:{fleet}/hosts.ini", labels=["rack"], limit_patterns=["rack=z.example-*"])
    assert names(targets) == ["web1"]
    (note,) = targets.notes
    assert "so that --limit leaves the host out: db001, db002, db003 and 497 more" in note


@pytest.mark.parametrize(
    "configuration",
    [
        "[privilege_escalation]\nbecome_ask_pass=True",
        "[defaults]\nask_pass=True",
        "[defaults]\nno_log=True",
        "[defaults]\nverbosity=4",
        "[tags]\nrun=deploy",
        "[tags]\nskip=all",
    ],
)
def test_settings_for_other_plays_do_not_keep_ansible_from_filling_in(ansible, tmp_path, monkeypatch, configuration):
    write(tmp_path / "ansible.cfg", f"[ssh_connection]\nssh_args=-o ProxyJump=bastion\n{configuration}\n")
    monkeypatch.chdir(tmp_path)
    hosts = write(tmp_path / "hosts.yaml", "all: {hosts: {web: {ansible_host: \"{{ 'web' ~ 1 }}\"}}}")
    (target,) = inventory.load([], f"ansible:{hosts}")
    assert (target.source, target.ssh_args) == ("ssh:web1", ("-oProxyJump=bastion",))


def test_templates_of_this_machine_and_a_play_host_of_the_inventory_do_not_stop_ansible(ansible, tmp_path):
    hosts = (
        "localhost ansible_host='{{ nothing }}' ansible_user='{{ nothing }}'\nweb ansible_host='{{ 1 + 1 }}.example'\n"
    )
    hosts += "plain ansible_user=other\n[all:vars]\nansible_become='{{ nothing }}'\n[late:vars]\n[late]\n"
    targets = inventory.load([], f"ansible:{write(tmp_path / 'hosts.ini', hosts)}")
    assert set(unusable(targets)) == {"localhost", "web", "plain"}, "become is of all"
    targets = inventory.load([], f"ansible:{write(tmp_path / 'hosts.ini', hosts.replace('become', 'unknown'))}")
    assert {target.name: target.source for target in targets if not target.unusable} == {
        "web": "ssh:2.example",
        "plain": "ssh:other@plain",
    }


def test_names_that_look_like_templates_are_names(ansible, tmp_path):
    hosts = {"all": {"hosts": {"a{{ 7 * 7 }}": {"ansible_host": "{{ 6 * 7 }}.example"}}}}
    (target,) = inventory.load([], f"ansible:{write(tmp_path / 'hosts.yaml', json.dumps(hosts))}")
    assert (target.name, target.source) == ("a{{ 7 * 7 }}", "ssh:42.example")


@pytest.mark.parametrize(
    ("variables", "source", "reason"),
    [
        ({"ansible_host": "{{ inventory_hostname_short }}.lan"}, "ssh:web1.lan", None),
        (
            {"ansible_host": "{{a}}", "a": "{{ b }}.example", "b": "{{ inventory_hostname }}"},
            "ssh:web1.dc.example",
            None,
        ),
        ({"ansible_port": "{{ port }}", "port": 2222}, "ssh:web1.dc:2222", None),
        ({"ansible_host": "{{ a }}", "a": "x{{ a }}"}, None, "does it refer to itself?"),
        ({"ansible_host": "{{ a }}{{ a }}", "a": "{{ b }}" * 9, "b": "{{ a }}" * 9}, None, "does it refer to itself?"),
        ({"ansible_host": "{{ groups.web[0] }}"}, None, "only Ansible can fill it in; use -i ansible:FILE"),
        ({"ansible_host": "{% if x %}y{% endif %}"}, None, "only Ansible"),
        ({"ansible_host": "{{ a }}"}, None, "a is not a text among the host's variables"),
        ({"ansible_host": "{{ a }}", "a": ["b"]}, None, "a is not a text"),
        (
            {"ansible_user": {"__ansible_vault": "$ANSIBLE_VAULT;hunter2"}},
            None,
            "ansible_user is encrypted by ansible-vault",
        ),
        ({"ansible_host": {"__ansible_unsafe": "good.example"}}, "ssh:good.example", None),
        ({"ansible_become_password": {"__ansible_vault": "x"}, "motd": "{{ x }}"}, "ssh:web1.dc", None),
    ],
)
def test_without_ansible_plain_references_are_filled_in(tmp_path, monkeypatch, variables, source, reason):
    monkeypatch.setenv("PATH", str(tmp_path))
    first, second = load_json(tmp_path, **{"web1.dc": variables, "web2": {}})
    assert (second.source, second.unusable) == ("ssh:web2", None)
    if reason is None:
        assert (first.source, first.unusable) == (source, None)
    else:
        assert reason in str(first.unusable)
        assert "hunter2" not in str(first)


def test_without_ansible_playbook_plain_references_are_filled_in_and_a_warning_says_so(ansible, tmp_path, monkeypatch):
    program = f'#!/bin/sh\nexec {shutil.which("ansible-inventory")} "$@"\n'
    write(tmp_path / "bin/ansible-inventory", program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    hosts = "a ansible_host='{{ inventory_hostname }}.lan'\nb ansible_host='{{ groups.all[0] }}'\n"
    targets = inventory.load([], f"ansible:{write(tmp_path / 'hosts', hosts)}")
    assert targets[0].source == "ssh:a.lan"
    problem = "only Ansible can fill it in; ansible-playbook is not on PATH"
    assert unusable(targets) == {"b": f"ansible_host is a template, '{{{{ groups.all[0] }}}}': {problem}"}
    assert targets.warnings == [f"ansible:{tmp_path}/hosts: ansible.cfg is not used: ansible-playbook is not on PATH"]


# Hosts that cannot be used


def test_one_bad_value_is_its_hosts_own_and_limit_comes_first(tmp_path):
    fleet: dict[str, dict[str, object]] = {
        "option": {"ansible_host": "-oProxyCommand=x"},
        "port": {"ansible_port": 70000},
        "user": {"ansible_user": "a b"},
        "become": {"ansible_become": "perhaps"},
        "list": {"ansible_host": ["a"]},
        "python": {"ansible_python_interpreter": "bin/python"},
        "command": {"ansible_python_interpreter": "'unclosed"},
        "unprintable": {"ansible_private_key_file": "/k\x1b[2J"},
        "-name": {},
        "windows": {"ansible_shell_type": "powershell"},
        "good": {"ansible_host": "good.example"},
    }
    targets = load_json(tmp_path, **fleet)
    reasons = unusable(targets)
    assert reasons.keys() == fleet.keys() - {"good"}
    assert reasons["option"] == (
        "ansible_host: invalid host name '-oProxyCommand=x'; "
        "expected letters, digits and . _ - after a letter, digit or _"
    )
    assert "ansible_port: invalid port '70000'" in str(reasons["port"])
    assert "ansible_become: expected true or false, not 'perhaps'" in str(reasons["become"])
    assert reasons["list"] == "ansible_host must be text, not a list or a mapping"
    assert all(str(reason).isprintable() for reason in reasons.values())
    assert (names(limited := load_json(tmp_path, limit=("goo*",), **fleet)), limited.notes) == (["good"], [])
    with pytest.raises(InventoryError, match="--limit x selects none of 11 targets"):
        load_json(tmp_path, limit=("x",), **fleet)


def test_hosts_that_cannot_be_used_are_planned_as_unreachable_with_the_reason_also_when_resumed(tmp_path):
    targets = load_json(tmp_path, a={"ansible_user": "a b"}, b={"ansible_ssh_common_args": "-J bastion"})
    resumed = [Target(**json.loads(json.dumps(vars(target)))) for target in targets]
    assert resumed == targets
    for planned in (plan.make_plan(targets, 1), plan.make_plan(resumed, 1)):
        ((target, reason, error_type),) = planned.unreachable
        assert (target.name, error_type) == ("a", "InventoryValue")
        assert "invalid user name 'a b'" in reason
        assert [target.name for batch in planned.batches for target in batch.targets] == ["b"]


def test_a_label_that_cannot_be_used_is_left_out_and_said(tmp_path):
    racks: list[object] = [["r1"], "r\n2", {"__ansible_vault": "x"}, "r4", 4097 * "r"]
    targets = load_json(tmp_path, "rack", **{f"h{number}": {"rack": rack} for number, rack in enumerate(racks, 1)})
    assert not unusable(targets)
    assert [target.labels for target in targets] == [{}, {}, {}, {"rack": "r4"}, {}]
    assert [note.partition(": ")[2] for note in targets.notes] == [
        "rack must be text, not a list or a mapping: this label is left out: h1",
        "rack has unprintable characters: this label is left out: h2",
        "rack is encrypted by ansible-vault: this label is left out: h3",
        "rack has more than 4,096 characters: this label is left out: h5",
    ]


def test_a_note_is_one_line_for_hosts_with_one_cause_and_the_lines_are_bounded(tmp_path):
    fleet = {f"h{number:03}": {"ansible_port": "x"} for number in range(500)}
    (note,) = load_json(tmp_path, **fleet).notes
    assert note.endswith("expected a number from 1 to 65535: h000, h001, h002 and 497 more")
    notes = load_json(tmp_path, **{name: {"ansible_port": name} for name in fleet}).notes
    assert len(notes) == 11
    assert notes[-1].endswith(": 490 hosts are not used as written, for 490 other reasons")


def test_hosts_that_ssh_does_not_reach_are_counted_in_one_line(tmp_path):
    fleet: dict[str, dict[str, object]] = {
        "w1": {"ansible_connection": "winrm", "ansible_user": "a b"},
        "w2": {"ansible_connection": "ansible.builtin.winrm"},
        "sw1": {"ansible_connection": "ansible.netcommon.network_cli"},
        "c1": {"ansible_connection": "community.docker.docker"},
        "s1": {"ansible_connection": "ansible.builtin.ssh"},
        "s2": {"ansible_connection": "smart"},
        "s3": {"ansible_connection": "paramiko"},
    }
    targets = load_json(tmp_path, **fleet)
    assert unusable(targets).keys() == {"w1", "w2", "sw1", "c1"}
    assert unusable(targets)["w1"] == "ansible_connection is winrm: not reached by ssh"
    (note,) = targets.notes
    assert note.endswith(": 4 hosts are not reached by ssh (winrm 2, docker 1, network_cli 1)")


def test_this_machine_is_audited_once(tmp_path):
    local: dict[str, object] = {"ansible_connection": "local"}
    targets = load_json(tmp_path, a=local, localhost=local, z={"ansible_connection": "ansible.builtin.local"})
    assert [(target.kind, target.source) for target in targets] == [("live", "live:")] * 3
    assert unusable(targets) == dict.fromkeys(
        ("a", "z"), "ansible_connection is local: this machine, which is audited as localhost"
    )
    assert not unusable(load_json(tmp_path, limit=("a",), a=local, localhost=local))
    (note,) = load_json(tmp_path, a=local | {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}).notes
    assert note.endswith("ansible_python_interpreter is not used, but --python or this program's own: a")


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"ansible_become_method": "su"}, "ansible_become_method: only sudo is known, not 'su'"),
        ({"ansible_become_method": "community.general.doas"}, "only sudo is known, not 'community.general.doas'"),
        ({"ansible_become_method": "ansible.builtin.sudo", "ansible_become_user": "root"}, None),
        ({"ansible_become_user": "oracle"}, "ansible_become_user: the collector needs root, not 'oracle'"),
        ({"ansible_sudo_user": "oracle"}, "ansible_sudo_user: the collector needs root, not 'oracle'"),
        ({"ansible_become_exe": "/usr/local/bin/pbrun"}, "ansible_become_exe: only sudo is run"),
        ({"ansible_become_exe": "/usr/bin/sudo", "ansible_become_flags": "-H -S -n"}, None),
        ({"ansible_become_flags": "-u oracle"}, "ansible_become_flags: the collector runs through sudo -n alone"),
        ({"ansible_become_password": "hunter2"}, None),
    ],
)
def test_another_way_to_become_root_is_named(tmp_path, variables, reason):
    (target,) = load_json(tmp_path, a={"ansible_become": True, **variables})
    assert target.unusable is None if reason is None else reason in str(target.unusable)
    assert "hunter2" not in repr(target)
    (target,) = load_json(tmp_path, a=variables)
    assert (target.unusable, target.become) == (None, False)


# ssh's arguments


@pytest.mark.parametrize(
    ("variables", "ssh_args"),
    [
        ({"ansible_ssh_common_args": "-J audit@bastion"}, ("-J", "audit@bastion")),
        (
            {"ansible_ssh_common_args": '-o ProxyCommand="ssh -W %h:%p -q bastion"\n'},
            ("-oProxyCommand=ssh -W %h:%p -q bastion",),
        ),
        ({"ansible_ssh_args": "-C -o ControlMaster=auto -o ControlPersist=60s"}, ("-C",)),
        (
            {"ansible_ssh_extra_args": "-4Cqvp2222 -oStrictHostKeyChecking=no"},
            ("-4", "-C", "-oStrictHostKeyChecking=no"),
        ),
        ({"ansible_ssh_extra_args": "-tt -A -R 3128:proxy:3128 -o LogLevel=DEBUG -S none"}, ()),
        ({"ansible_private_key_file": "/a", "ansible_ssh_private_key_file": "/b c"}, ('-oIdentityFile="/b c"',)),
        ({"ansible_host_key_checking": False}, ("-oStrictHostKeyChecking=no",)),
        ({"ansible_ssh_timeout": 30}, ("-oConnectTimeout=30",)),
        ({"ansible_ssh_pkcs11_provider": "/lib/p11.so"}, ("-oPKCS11Provider=/lib/p11.so",)),
        ({"ansible_ssh_args": "-oPKCS11Provider=p11.so"}, ("-oPKCS11Provider=p11.so",)),
        ({"ansible_paramiko_proxy_command": "nc %h %p", "ansible_paramiko_timeout": 3}, ()),
        (
            {
                "ansible_connection": "paramiko_ssh",
                "ansible_paramiko_proxy_command": "nc %h %p",
                "ansible_paramiko_private_key_file": "/p",
                "ansible_private_key_file": "/a",
                "ansible_paramiko_host_key_checking": False,
                "ansible_paramiko_timeout": 3,
            },
            ("-oProxyCommand=nc %h %p", "-oStrictHostKeyChecking=no", "-oIdentityFile=/p", "-oConnectTimeout=3"),
        ),
        ({"ansible_ssh_executable": "/usr/bin/ssh", "ansible_control_path": "/x"}, ()),
    ],
)
def test_arguments_for_ssh_are_those_that_say_how_a_host_is_reached(tmp_path, variables, ssh_args):
    (target,) = load_json(tmp_path, a=variables)
    assert (target.unusable, target.ssh_args) == (None, ssh_args)


@pytest.mark.parametrize(
    "arguments",
    [
        *("-N", "-f", "-n", "-W a:1", "-s", "-O exit", "-Cf", "-G", "-Q key", "-w 0", "-1", "-?"),
        *("-oRemoteCommand=x", "-o 'localcommand x'", "-oForkAfterAuthentication=yes", "-oSessionType=none"),
        *("-oMatch=all", "-o =", "-o", "-J", "host", "--", "-", "'unclosed", "-o\x1bX=y"),
        *("-l 'a b'", "-p 0", "-oUser=-x", "-oPort=x", "-oIdentityFile", "-i '/a\x1b'"),
    ],
)
def test_arguments_that_end_a_supervised_ssh_refuse_their_host(tmp_path, arguments):
    bad, good = load_json(tmp_path, a={"ansible_ssh_extra_args": arguments}, b={})
    assert str(bad.unusable).startswith("ansible_ssh_extra_args: ")
    assert str(bad.unusable).isprintable()
    assert good.unusable is None


@pytest.mark.parametrize(
    ("variables", "source", "ssh_config"),
    [
        ({"ansible_ssh_args": "-o User=other -o Port=5", "ansible_user": "u", "ansible_port": 6}, "other@a:5", None),
        ({"ansible_ssh_common_args": "-l other -p 5", "ansible_user": "u"}, "u@a:5", None),
        ({"ansible_ssh_common_args": "-F /one -F none"}, "a", "none"),
        ({"ansible_ssh_args": "-F ~/one -lx"}, "x@a", f"{os.getcwd()}/~/one"),
        ({"ansible_connection": "paramiko", "ansible_user": "u", "ansible_paramiko_user": "p"}, "p@a", None),
        ({"ansible_connection": "paramiko", "ansible_paramiko_host": "b", "ansible_paramiko_port": 7}, "b:7", None),
        ({"ansible_paramiko_user": "p", "ansible_paramiko_host": "b", "ansible_paramiko_port": 7}, "a", None),
    ],
)
def test_user_port_and_file_are_fields_of_the_target(tmp_path, variables, source, ssh_config):
    (target,) = load_json(tmp_path, a=variables)
    assert (target.source, target.ssh_config, target.ssh_args) == (f"ssh:{source}", ssh_config, ())
    (completed,) = scopes.apply({"ssh_config": "/of/command/line"}, [target])
    assert completed.ssh_config == (ssh_config or "/of/command/line")


def test_no_password_in_arguments_for_ssh_is_shown(tmp_path):
    """Neither by plan, nor in the reason why a host cannot be used, nor in the notes."""
    arguments = [
        "-o 'ProxyCommand=sshpass -p hunter2 ssh -W %h:%p j' -J j -i /id -oUserKnownHostsFile=/kh -o SetEnv=A=hunter2",
        "-o 'KnownHostsCommand /bin/sshpass -p hunter2' -4",
        "-o 'ProxyCommand=sshpass -p hunter2 ssh {{ missing }}'",
        "-o 'ProxyCommand=sshpass -p {{ \"hunter2\" + missing }} {% if 'hunter2' %}{{ 'hunter2 }}",
        "-o ProxyCommand=sshpass -p hunter2 ssh",
        "-o ProxyCommand=sshpass hunter2",
        "-o 'LocalCommand sshpass -p hunter2'",
        "-oUser=hunter2:x",
        "-l hunter2:x",
        "-o 'IdentityFile=\"hunter2'",
    ]
    targets = load_json(tmp_path, **{f"h{number}": {"ansible_ssh_args": text} for number, text in enumerate(arguments)})
    assert unusable(targets).keys() == {f"h{number}" for number in range(2, len(arguments))}
    lines = list(plan.lines(plan.make_plan(targets, 1), [plan.this_machine()], 9))
    assert "-oProxyCommand=... -J j -i /id -oUserKnownHostsFile=/kh -oSetEnv=..." in lines[1]
    assert "-oKnownHostsCommand=... -4" in lines[2]
    assert "'{{ missing }}'" in str(targets[2].unusable)
    assert "hunter2" not in "\n".join([*lines, *targets.notes, *map(str, unusable(targets).values())])


ROUTES = """\
plain
jump ansible_ssh_common_args='-J audit@bastion.example:2222 -o ConnectionAttempts=3' ansible_user=ops
proxy ansible_ssh_common_args='-o ProxyCommand="ssh -W %h:%p -q bastion"' ansible_port=2022
key ansible_ssh_private_key_file=keys/id ansible_host=192.0.2.7
home ansible_private_key_file=~/keys/id ansible_ssh_extra_args='-o "User later" -o Port=99'
files ansible_ssh_args='-o UserKnownHostsFile="kk/kh ~/kh" -o IdentityFile=keys/id -o CertificateFile=keys/c -C'
filed ansible_ssh_args='-oGlobalKnownHostsFile=kk/g -oIdentityAgent=keys/a -oRevokedHostKeys=kk/r -oPKCS11Provider=l/p'
quick ansible_ssh_args='-o User=early -o Port=5' ansible_user=u ansible_port=6 ansible_ssh_common_args='-p 7'
late ansible_ssh_common_args='-l late -p 5 -o User=later' ansible_user=u
only ansible_ssh_extra_args='-l only -p 5 -F routes.conf -F none'
first ansible_ssh_args='-o ProxyJump=early' ansible_ssh_common_args='-o ProxyJump=late -oIdentityFile=/another'
unchecked ansible_host_key_checking=no ansible_ssh_host=192.0.2.8 ansible_ssh_user=root ansible_ssh_port=222
config ansible_ssh_args='-F routes.conf -C' ansible_ssh_timeout=17
"""
SETTINGS = """\
[defaults]
remote_user = deploy
private_key_file = deploy_key
timeout = 23
[ssh_connection]
ssh_args = -o ControlPersist=5m -o Compression=yes
ssh_common_args = -o ProxyJump=gate
"""
# What says how a host is reached, in the output of `ssh -G`.
COMPARED = {
    *("hostname", "user", "port", "identityfile", "proxyjump", "proxycommand", "stricthostkeychecking"),
    *("connecttimeout", "connectionattempts", "compression"),
    *("userknownhostsfile", "globalknownhostsfile", "certificatefile", "identityagent", "revokedhostkeys"),
    "pkcs11provider",
}

# Ansible's own, which are not taken over, and ssh's.
DEFAULTS = {"connecttimeout 10", "compression yes", "connecttimeout none", "compression no"}


def configure(arguments: list[str]) -> set[str]:
    """Return what ssh makes of its arguments."""
    process = subprocess.run(["ssh", "-G", *arguments], capture_output=True, text=True, check=True)
    return {line for line in process.stdout.splitlines() if line.split()[0] in COMPARED}


@pytest.mark.parametrize("settings", ["", SETTINGS], ids=["variables", "ansible.cfg"])
def test_ssh_reaches_each_host_as_ansible_does(ansible, tmp_path, monkeypatch, settings):
    """The arguments that Ansible gives to ssh, from a program in its place, and ours."""
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "hosts.ini", ROUTES)
    write(tmp_path / "ansible.cfg", settings)
    write(tmp_path / "routes.conf", "Host *\nUser routed\nProxyJump other\n")
    recorder = write(tmp_path / "bin/ssh", "#!/bin/sh\nprintf '%s\\0' \"$@\" > $RECORDS/$$\nexit 255\n")
    recorder.chmod(0o755)
    (tmp_path / "records").mkdir()
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "RECORDS": str(tmp_path / "records")}
    command = ["ansible", "all", "-i", "hosts.ini", "-m", "raw", "-a", "true", "-f", "20"]
    subprocess.run(command, env=env, capture_output=True, check=False)
    expected = {}
    for record in (tmp_path / "records").iterdir():
        arguments = record.read_text().split("\0")
        if not {"-O", "ControlPersist"} & {*arguments}:  # Ansible's questions to ssh itself
            result = {re.sub(r" (?=(keys|kk|l)/)", f" {tmp_path}/", line) for line in configure(arguments[:-1])}
            expected[next(line for line in result if line.startswith("hostname"))] = result
    targets = inventory.load([], "ansible:hosts.ini")
    assert not unusable(targets)
    assert len(targets) == len(expected) == len(ROUTES.splitlines())
    monkeypatch.chdir("/")  # the collector's ssh runs elsewhere
    for target in targets:
        account = destination.parse(target.source.removeprefix("ssh:"))
        own = ["-p", str(account.port)] if account.port else []
        own += ["-l", account.user] if account.user else []
        own += ["-F", target.ssh_config] if target.ssh_config else []
        result = configure([*own, *target.ssh_args, account.host])
        ansibles = expected[next(line for line in result if line.startswith("hostname"))]
        assert result - DEFAULTS == ansibles - DEFAULTS, target.name
