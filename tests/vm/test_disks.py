"""Disks of a running system, by the command line, seen from inside the guests.

One system for all tests, in their order: each goes on where the one before has left it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.cli import Cli
from tests.support.machines import descendants
from tests.vm.test_faults import process

CANARY = "canary-of-alice"
MIB = 1 << 20

POLICY = """\
[policy]
name = "tests.disks"
version = "1.0"
bootstrap = "system"

[simple-type-enforcement]
types = ["common", "other"]

[chinese-wall]
types = ["bank-a", "bank-b"]

[[chinese-wall.conflicts]]
name = "banks"
types = ["bank-a", "bank-b"]
history = true

[labels.system]
ste = ["common", "other"]

[labels.alice]
ste = ["common"]
cw = ["bank-a"]

[labels.bob]
ste = ["common"]
cw = ["bank-b"]

[resources.store]
ste = "common"

[resources.vault]
ste = "other"
"""

SYSTEM = """\
name = "disks"
policy = "policy.toml"

[domains.alice]
label = "alice"
image = "minimal"
memory = "128M"
uses = ["data", "secret", "scratch", "fixed:ro", "vault", "small"]

[domains.bob]
label = "bob"
image = "minimal"
memory = "128M"
autostart = false
uses = ["data", "scratch"]

[resources.data]
kind = "disk"
label = "store"
file = "data.img"
size = "16M"

[resources.secret]
kind = "disk"
label = "store"
file = "secret.qcow2"
format = "qcow2"
size = "16M"
encrypted = true

[resources.scratch]
kind = "disk"
label = "store"
file = "scratch.img"
size = "16M"
discard = true

[resources.fixed]
kind = "disk"
label = "store"
file = "fixed.img"

[resources.vault]
kind = "disk"
label = "vault"
file = "vault.img"
size = "16M"

[resources.small]
kind = "disk"
label = "store"
file = "full/small.img"
size = "16M"

[jail]
accept-missing = ["cgroup", "swap"]
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """`alice` runs; the folder of the images is her owner's alone, one image on a small tmpfs."""
    cli = Cli()
    images = cli.home / "system"
    images.mkdir(mode=0o700)
    (images / "policy.toml").write_text(POLICY)
    (images / "system.toml").write_text(SYSTEM)
    (images / "fixed.img").write_bytes(b"fixed".ljust(MIB, b"\0"))
    (images / "full").mkdir()
    mounted = os.getuid() == 0
    if mounted:
        words = ["mount", "-t", "tmpfs", "-o", "size=2M", "small", str(images / "full")]
        subprocess.run(words, check=True)
    try:
        done = cli.run("up", str(images / "system.toml"), "--detach")
        assert done.returncode == 3, f"the vault is refused: {done.stdout}{done.stderr}"
        yield cli
    finally:
        cli.down()
        if mounted:
            subprocess.run(["umount", "-l", str(images / "full")], check=False)


def sh(cli: Cli, domain: str, script: str) -> str:
    """Run a script in a guest, which must succeed; return what it printed."""
    return cli.ok("exec", domain, "--", "sh", "-c", script)


def use_of(cli: Cli, disk: str) -> str:
    """Return the number of the use of a disk."""
    return next(str(row["id"]) for row in cli.rows("channels") if row["sink"] == disk)


def write(disk: str, text: str = CANARY) -> str:
    """Return a script that writes a text to a disk's third MiB."""
    to = f"dd of=/dev/disk/{disk} bs=1M seek=2 conv=fsync 2>/dev/null"
    return f"[ -b /dev/disk/{disk} ] && printf %s {text} | {to}"


def read(disk: str) -> str:
    """Return a script that reads it from the device, not from what the guest remembers."""
    drop = "echo 3 >/proc/sys/vm/drop_caches"
    return f"{drop}; dd if=/dev/disk/{disk} bs=1M skip=2 count=1 2>/dev/null | head -c 15"


def daemon(cli: Cli, image: str) -> int:
    """Return the storage daemon that serves an image: the innermost process of its jail."""
    return descendants(process(cli, rf"bwrap .*/{re.escape(image)} /image "))[-1]


def settled(cli: Cli, domain: str, disk: str) -> None:
    """Wait until a guest has a disk."""
    sh(
        cli,
        domain,
        f"for i in $(seq 50); do [ -b /dev/disk/{disk} ] && exit; sleep 0.1; done; false",
    )


def test_a_guest_has_its_disks_by_name_and_what_it_writes_is_on_the_host(node: Cli) -> None:
    """Every disk it may use is there; what is encrypted or thrown away the image does not show."""
    there = ["data", "fixed", "scratch", "secret", "small"]
    for disk in there:  # its agent may answer before it has named them all
        settled(node, "alice", disk)
    assert sh(node, "alice", "ls /dev/disk").split() == there
    for disk in ("data", "secret", "scratch"):
        sh(node, "alice", write(disk))
        assert sh(node, "alice", read(disk)) == CANARY
    images = node.home / "system"
    shown = {path.name for path in images.glob("*.*") if CANARY.encode() in path.read_bytes()}
    assert shown == {"data.img"}


def test_a_disk_that_the_policy_refuses_does_not_exist(node: Cli) -> None:
    """No type in common: no device, no image, and the refusal says why."""
    assert "[STE-NO-SHARED-TYPE]" in node.denied("connect", "alice", "vault")
    assert not (node.home / "system/vault.img").exists()


def test_what_is_only_read_can_only_be_read(node: Cli) -> None:
    """`NAME:ro` is a read-only device. The control: another disk takes the same write."""
    assert sh(node, "alice", "head -c 5 /dev/disk/fixed") == "fixed"
    assert node.run("exec", "alice", "--", "sh", "-c", write("fixed")).returncode != 0
    sh(node, "alice", write("data"))


def test_a_full_disk_of_the_host_is_an_error_of_the_guest_s(node: Cli) -> None:
    """Writing more than the host has room for fails in the guest, which runs on."""
    if os.getuid() != 0:
        pytest.skip("only root can make a small file system")
    fill = "dd if=/dev/urandom of=/dev/disk/small bs=1M count=8 conv=fsync 2>&1"
    done = node.run("exec", "alice", "--", "sh", "-c", fill)
    assert done.returncode != 0
    assert re.search("I/O error|Input/output error|No space", done.stdout)
    assert {row["name"]: row["state"] for row in node.rows("ps")}["alice"] == "running"
    sh(node, "alice", write("data"))


def test_a_killed_daemon_is_an_error_of_the_guest_s_and_is_replaced_on_demand(node: Cli) -> None:
    """Reads fail at once, the use is cut and recorded; `connect` gives the disk again."""
    number = use_of(node, "data")
    os.kill(daemon(node, "data.img"), signal.SIGKILL)
    time.sleep(1)
    assert node.run("exec", "alice", "--", "sh", "-c", read("data")).stdout != CANARY
    assert number not in {str(row["id"]) for row in node.rows("channels")}
    assert f'"channel":{number}' in node.ok("audit", "export", "--format", "json").replace(" ", "")
    node.ok("connect", "alice", "data")
    settled(node, "alice", "data")
    assert sh(node, "alice", read("data")) == CANARY


def test_a_frozen_daemon_holds_up_its_guest_and_nobody_else(node: Cli) -> None:
    """The guest's read hangs; the node answers, and the cut ends the hanging with an error."""
    frozen = daemon(node, "data.img")
    os.kill(frozen, signal.SIGSTOP)
    reader = node.popen("exec", "alice", "--", "sh", "-c", read("data") + "; echo over")
    time.sleep(2)
    assert reader.poll() is None
    began = time.monotonic()
    node.ok("ps")
    node.ok("channels")
    node.ok("cut", use_of(node, "data"))
    assert time.monotonic() - began < 5
    out, _ = reader.communicate(timeout=30)
    assert "over" in out
    assert CANARY not in out
    node.ok("connect", "alice", "data", "--name", "data")
    settled(node, "alice", "data")
    assert sh(node, "alice", read("data")) == CANARY


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_the_disks_go_on_without_the_node(node: Cli, how: str) -> None:
    """After a restart, or the node's death, the same uses serve the guest, and can be cut."""
    before = {row["id"] for row in node.rows("channels")}
    if how == "restart":
        node.ok("restart")
    else:
        service = process(node, r"^(?!.*supervisor\.main).* -m skerry\.control\.service ")
        os.kill(service, signal.SIGKILL)
    for _ in range(100):
        with contextlib.suppress(AssertionError):
            if {row["id"] for row in node.rows("channels")} == before:
                break
        time.sleep(0.1)
    assert {row["id"] for row in node.rows("channels")} == before
    text = f"after-{how}-----"[:15]
    sh(node, "alice", write("data", text))
    assert sh(node, "alice", read("data")) == text
    sh(node, "alice", write("data"))
    node.ok("cut", use_of(node, "secret"))
    assert node.run("exec", "alice", "--", "sh", "-c", write("secret")).returncode != 0
    node.ok("connect", "alice", "secret", "--name", "secret")
    settled(node, "alice", "secret")
    assert sh(node, "alice", read("secret")) == CANARY


def test_a_pause_that_waits_for_a_frozen_daemon_fails_and_leaves_the_guest_running(
    node: Cli,
) -> None:
    """QEMU waits for its disks before it stops; once they are cut the guest goes on."""
    os.kill(daemon(node, "small.img"), signal.SIGSTOP)
    script = "dd if=/dev/disk/small of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null"
    reader = node.popen("exec", "alice", "--", "sh", "-c", script)
    time.sleep(2)
    paused = node.run("pause", "alice")
    assert paused.returncode == 1
    assert "did not answer stop in time" in paused.stderr
    node.ok("cut", use_of(node, "small"))
    reader.communicate(timeout=30)
    assert sh(node, "alice", "echo alive") == "alive\n"


def test_what_one_wrote_its_rival_never_gets_until_the_disk_is_released(node: Cli) -> None:
    """The disk's label allows both; who wrote it counts. Released, it holds nothing of it.

    The control: bob gets, at once, the disk to which alice's writes never went.
    """
    os.kill(daemon(node, "scratch.img"), signal.SIGSTOP)
    began = time.monotonic()
    node.ok("stop", "alice", "--timeout", "5")
    assert time.monotonic() - began < 10, "a frozen daemon does not keep a domain from ending"
    done = node.run("start", "bob")
    assert done.returncode == 3
    assert "data" in done.stderr
    assert "banks" in done.stderr
    assert sh(node, "bob", "ls /dev/disk").split() == ["scratch"]
    assert CANARY not in sh(node, "bob", read("scratch"))
    (data,) = [row for row in node.rows("disk", "list") if row["name"] == "data"]
    assert (data["written"], data["users"]) == (["alice"], [])
    image = node.home / "system/data.img"
    assert CANARY.encode() in image.read_bytes()
    assert "zeroed" in node.ok("disk", "release", "data")
    assert image.read_bytes() == bytes(16 * MIB)
    node.ok("connect", "bob", "data", "--name", "data")
    settled(node, "bob", "data")
    assert sh(node, "bob", "tr -d '\\0' </dev/disk/data | wc -c").strip() == "0"
    (data,) = [row for row in node.rows("disk", "list") if row["name"] == "data"]
    assert (data["written"], data["users"]) == (["bob"], ["bob"])
    refused = node.run("disk", "release", "data")
    assert refused.returncode == 1
    assert "is used by bob" in refused.stderr


def test_the_key_of_a_released_disk_is_gone(node: Cli) -> None:
    """An encrypted disk is released by its key; what is left of the image nobody reads."""
    keys = node.home / "state/keys"
    assert [path.name.partition("-")[0] for path in keys.iterdir()] == ["secret"]
    assert "key was destroyed" in node.ok("disk", "release", "secret")
    assert list(keys.iterdir()) == []
    assert not (node.home / "system/secret.qcow2").exists()
    assert '"released"' in node.ok("audit", "export", "--format", "json")
    node.ok("connect", "bob", "secret", "--name", "secret")
    settled(node, "bob", "secret")
    assert sh(node, "bob", "tr -d '\\0' </dev/disk/secret | wc -c").strip() == "0"
