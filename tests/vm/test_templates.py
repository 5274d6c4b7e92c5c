"""Domains that begin from a template: who they are, what they share, and what they do not."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skerry.jail.identity import open_pool
from skerry.machine.qemu.template import Template
from skerry.node import template_store as store
from skerry.node.jails import MEMORY_OVERHEAD
from tests.support.cli import Cli

POLICY = """\
[policy]
name = "templates"
version = "1.0"
bootstrap = "system"
primary = "chinese-wall"
[simple-type-enforcement]
types = ["system", "work"]
[chinese-wall]
types = ["red", "blue"]
[[chinese-wall.conflicts]]
name = "rivals"
types = ["red", "blue"]
[labels.system]
ste = ["system", "work"]
[labels.plain]
ste = ["work"]
[labels.red]
ste = ["work"]
cw = ["red"]
[labels.blue]
ste = ["work"]
cw = ["blue"]
"""

SYSTEM = """\
name = "templates"
policy = "policy.toml"
[jail]
accept-missing = ["cgroup", "swap"{more}]
[domains.one]
label = "plain"
memory = "128M"
template = true
[domains.two]
label = "plain"
memory = "128M"
template = true
[domains.red]
label = "red"
memory = "128M"
template = true
autostart = false
[domains.blue]
label = "blue"
memory = "128M"
template = true
autostart = false
[domains.large]
label = "plain"
memory = "1G"
template = true
autostart = false
[[channels]]
kind = "stream"
name = "talk"
from = "one"
to = "two"
"""


def sh(cli: Cli, domain: str, script: str) -> str:
    """Run a script in a guest, and return what it said."""
    return cli.ok("exec", domain, "--", "sh", "-c", script)


def records(cli: Cli, event: str) -> list[dict[str, Any]]:
    """Return what the trail has of one event."""
    return [r["fields"] for r in cli.rows("audit", "tail", "-n", "1000") if r["event"] == event]


def shelf(cli: Cli) -> Path:
    """Return where the node keeps its templates."""
    return cli.home / "state/templates"


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    """Two clones of one template, running, with a stream between them."""
    made = Cli()
    pool = open_pool()
    if pool is not None:
        pool.close()
    (made.home / "policy.toml").write_text(POLICY)
    more = "" if pool is not None else ', "uid"'
    (made.home / "system.toml").write_text(SYSTEM.replace("{more}", more))
    made.ok("up", str(made.home / "system.toml"), "--detach")
    yield made
    made.down()


def test_both_are_clones_of_one_template(cli: Cli) -> None:
    """One boot, two domains, and the trail says which template and by what digest."""
    [made] = records(cli, "template-made")
    cloned = records(cli, "cloned")
    assert [fields["domain"] for fields in cloned] == ["one", "two"]
    assert {fields["template"] for fields in cloned} == {made["template"]}
    assert {fields["ram"] for fields in cloned} == {made["ram"]}
    assert made["label"] == "plain"


def test_a_clone_knows_its_own_label_and_name(cli: Cli) -> None:
    """What the template's guest did not know, each clone reads from its own QEMU, read-only."""
    for name in ("one", "two"):
        told = sh(cli, name, "cat /run/skerry/label; echo; cat /run/skerry/name; echo; hostname")
        assert told.split() == ["plain", name, name]
        assert "asleep" in sh(cli, name, "ls /run/skerry").split(), "it began as a template"
    device, driver = "/sys/bus/platform/devices/QEMU0002:00", "/sys/bus/platform/drivers/fw_cfg"
    find = f"echo >{device}/driver_override; echo QEMU0002:00 >{driver}/bind"
    raw = "/sys/firmware/qemu_fw_cfg/by_name/opt/skerry/name/raw"
    assert sh(cli, "two", f"ls {raw} 2>/dev/null; {find}; cat {raw}") == "two"
    assert sh(cli, "one", "stat -c %a /run/skerry/label").strip() == "444"


def test_a_clones_clock_is_the_hosts(cli: Cli) -> None:
    """The time that passed since the template was saved has passed for the clone, too."""
    assert abs(int(sh(cli, "two", "date +%s")) - time.time()) < 30


def test_channels_come_after_the_restore_and_carry_bytes(cli: Cli) -> None:
    """The port that the file declares is there in both, and only that."""
    ports = set(sh(cli, "one", "ls /dev/virtio-ports").split())
    assert ports == {"skerry.agent", "skerry.control", "talk"}
    sh(cli, "one", "echo hello > /dev/virtio-ports/talk")
    assert sh(cli, "two", "timeout 20 head -n1 /dev/virtio-ports/talk") == "hello\n"


def test_what_one_clone_writes_no_other_sees(cli: Cli) -> None:
    """Not in its files, and not in the memory that both began with, nor does a later clone."""
    sh(cli, "one", "head -c 8000000 /dev/zero | tr '\\0' S >/root/secret; echo x >>/etc/profile")
    assert "secret" not in sh(cli, "two", "ls -a /root; tail -n1 /etc/profile")
    cli.ok("stop", "two")
    cli.ok("start", "two")
    assert "x" not in sh(cli, "two", "tail -n1 /etc/profile").split()
    assert "secret" not in sh(cli, "two", "ls -a /root")
    [one] = store.stored(shelf(cli))
    assert b"S" * 4096 not in (shelf(cli) / one.key / "ram").read_bytes()
    assert one.manifest is not None
    store.read(shelf(cli), one.manifest)


def test_a_wall_counts_clones_and_another_label_has_a_template_of_its_own(cli: Cli) -> None:
    """Blue is refused beside red, which is a clone; when red has gone it starts, of its own."""
    cli.ok("start", "red")
    assert "[CW-CONFLICT]" in cli.denied("start", "blue")
    cli.ok("stop", "red")
    cli.ok("start", "blue")
    assert sh(cli, "blue", "cat /run/skerry/label") == "blue"
    labels = [fields["label"] for fields in records(cli, "template-made")]
    assert labels == ["plain", "red", "blue"]
    used = {fields["domain"]: fields["template"] for fields in records(cli, "cloned")}
    assert len({used["one"], used["red"], used["blue"]}) == 3
    cli.ok("stop", "blue")


def test_templates_are_listed_and_removed_by_the_command(cli: Cli) -> None:
    """Three labels, three rows; one that is removed is made anew by the next start."""
    rows = cli.rows("image", "template", "list")
    assert {row["label"] for row in rows} == {"plain", "red", "blue"}
    assert re.search(r"minimal +red +128M", cli.ok("image", "template", "list"))
    [red] = [row["template"] for row in rows if row["label"] == "red"]
    cli.ok("image", "template", "remove", red[:10])
    cli.ok("start", "red")
    assert [f["label"] for f in records(cli, "template-made")].count("red") == 2
    cli.ok("stop", "red")


def test_a_domain_starts_cold_where_qemu_does_not_take_its_template(cli: Cli) -> None:
    """Whole, unaltered and no state of a machine: it is dropped, and the start is decided again."""
    rows = {row["label"]: row["template"] for row in cli.rows("image", "template", "list")}
    manifest = next(one.manifest for one in store.stored(shelf(cli)) if one.key == rows["red"])
    assert manifest is not None
    found = store.read(shelf(cli), manifest)
    store.write(shelf(cli), manifest.kind, Template(os.dup(found.ram), b"no state" * 999))
    before = len(records(cli, "allow"))
    cli.ok("start", "red")
    assert sh(cli, "red", "cat /run/skerry/label; cat /proc/cmdline").startswith("redconsole=")
    assert "skerry.template" not in sh(cli, "red", "cat /proc/cmdline")
    assert records(cli, "template-dropped")[-1]["template"] == rows["red"]
    starts = [r for r in records(cli, "allow")[before:] if r.get("domain") == "red"]
    assert [r.get("template") for r in starts][:2] == [True, None]
    assert rows["red"] not in {row["template"] for row in cli.rows("image", "template", "list")}
    cli.ok("stop", "red")
    cli.ok("start", "red")
    assert "skerry.template" in sh(cli, "red", "cat /proc/cmdline"), "it is made anew"
    cli.ok("stop", "red")


def most_used(cli: Cli, domain: str) -> int:
    """Return the most bytes that a domain's control group had, 0 where the host gives none."""
    [pid] = [
        pid
        for pid, words in cli.processes().items()
        if words.startswith("/usr/bin/qemu-system") and f"-name {domain} " in words
    ]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, name, path = line.split(":", 2)
        if name == "memory":
            home = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
            return int((home / "memory.max_usage_in_bytes").read_text())
        peak = Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.peak"
        if not name and peak.exists():
            return int(peak.read_text())
    return 0


def test_a_large_clone_may_use_its_memory(cli: Cli) -> None:
    """It fills most of it and goes on; by then it had more than the group of a cold machine may
    have (the control), where the host gives groups."""
    cli.ok("start", "large")
    fill = "mkdir /big; mount -t tmpfs -o size=900M none /big; dd if=/dev/zero of=/big/x bs=1M"
    sh(cli, "large", f"{fill} count=850 2>/dev/null; rm /big/x")
    assert sh(cli, "large", "hostname") == "large\n"
    if used := most_used(cli, "large"):
        assert used > (1 << 30) + MEMORY_OVERHEAD
    cli.ok("stop", "large")


def test_an_altered_template_is_refused_by_the_next_node(cli: Cli) -> None:
    """The start is a denial with its reason; unaltered, the label beside it is cloned at once.

    The last in this file: it starts the node anew.
    """
    made = len(records(cli, "template-made"))
    cli.ok("down")
    rows = {row["label"]: row["template"] for row in cli.rows("image", "template", "list")}
    state = shelf(cli) / rows["red"] / "state"
    state.chmod(0o600)
    state.write_bytes(state.read_bytes() + b"x")
    cli.ok("up", str(cli.home / "system.toml"), "--detach")
    assert sh(cli, "one", "hostname") == "one\n"
    assert len(records(cli, "template-made")) == made, "the control: plain's was on the disk"
    why = cli.denied("start", "red")
    assert "TEMPLATE-ALTERED" in why
    assert {row["name"]: row["state"] for row in cli.rows("ps")}["red"] != "running"
    assert [r for r in records(cli, "deny") if r["why"]["code"] == "TEMPLATE-ALTERED"]
    cli.ok("image", "template", "remove", rows["red"])
    cli.ok("start", "red")
