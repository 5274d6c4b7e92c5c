"""What a domain may use of its host, measured on real guests."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.jail import cgroup
from skerry.jail.confinement import Limits
from skerry.jail.errors import LayerOff
from tests.support.cli import Cli
from tests.vm.test_disks import daemon, settled, sh
from tests.vm.test_tpm import swtpms

SHARE = 20
"""Hundredths of a core that the limited domain may use."""

MEASURE_S = 4.0
TRIES = 8

SYSTEM = f"""
name = "limits"
policy = "dummy"

[jail]
accept-missing = ["cgroup", "swap"]

[domains.limited]
label = "dummy"
cpu = {SHARE}
uses = ["slow", "chip"]

[domains.free]
label = "dummy"
uses = ["fast"]

[resources.slow]
kind = "disk"
label = "dummy"
file = "slow.img"
size = "64M"
encrypted = true

[resources.fast]
kind = "disk"
label = "dummy"
file = "fast.img"
size = "64M"
encrypted = true

[resources.chip]
kind = "tpm"
label = "dummy"
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """Two domains, one of which may use part of a core."""
    try:
        cgroup.remove(cgroup.create("limits", Limits(memory=1 << 30, pids=9, cpu=SHARE)))
    except LayerOff as error:
        pytest.skip(f"this host gives no control groups, and so no limits: {error}")
    cli = Cli()
    (cli.home / "system.toml").write_text(SYSTEM)
    try:
        cli.ok("up", str(cli.home / "system.toml"), "--detach")
        yield cli
    finally:
        cli.down()


def qemu_of(node: Cli, domain: str) -> int:
    """Return a domain's QEMU."""
    (pid,) = [
        pid
        for pid, words in node.processes().items()
        if words.startswith("/usr/bin/qemu-system") and f"-name {domain} " in words
    ]
    return pid


def share(pid: int) -> float:
    """Return how many cores a process used over a while."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, began = used(), time.monotonic()
    time.sleep(MEASURE_S)
    return (used() - before) / (time.monotonic() - began)


def busy(node: Cli, domain: str) -> int:
    """Let a guest do nothing but count, and return its QEMU."""
    node.ok("exec", domain, "--", "sh", "-c", "while :; do :; done >/dev/null 2>&1 &")
    return qemu_of(node, domain)


def quota(pid: int) -> int:
    """Return the hundredths of a core that a process's control group may use."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    fields = [line.split(":", 2) for line in lines]
    groups = {name: path for _, names, path in fields for name in names.split(",")}
    if (v1 := cgroup.MOUNT / "cpu").is_dir():
        us = (v1 / groups["cpu"].lstrip("/") / "cpu.cfs_quota_us").read_text()
    else:
        us = (cgroup.MOUNT / groups[""].lstrip("/") / "cpu.max").read_text().split()[0]
    return int(us) // 1000


def test_what_serves_a_domain_alone_gets_as_much_as_it_and_no_more(node: Cli) -> None:
    """A guest that reads its encrypted disk over and over keeps its storage daemon busy.

    The control: the daemon of a domain without `cpu`. The swtpm has its bound too.
    """
    for domain, disk in (("limited", "slow"), ("free", "fast")):
        settled(node, domain, disk)
    (swtpm,) = swtpms(node)
    assert quota(swtpm) == quota(qemu_of(node, "limited")) == SHARE
    node.ok("pause", "free")
    with reading(node, "limited", "slow"):
        assert 100 * share(daemon(node, "slow.img")) < 1.2 * SHARE
    node.ok("pause", "limited")
    node.ok("resume", "free")
    with reading(node, "free", "fast"):
        pid = daemon(node, "fast.img")
        assert any(100 * share(pid) > 1.2 * SHARE for _ in range(TRIES))
    node.ok("resume", "limited")


@contextlib.contextmanager
def reading(node: Cli, domain: str, disk: str) -> Iterator[None]:
    """Have a guest read a disk from the device over and over."""
    again = f"dd if=/dev/disk/{disk} of=/dev/null bs=4M iflag=direct"
    sh(node, domain, f"while :; do {again}; done >/dev/null 2>&1 & echo $! >/tmp/reading")
    try:
        yield
    finally:
        sh(node, domain, "kill $(cat /tmp/reading)")


def test_a_busy_guest_gets_its_share_of_a_core_and_no_more(node: Cli) -> None:
    """A loop in the guest; the control, without `cpu`, gets more on the same host."""
    node.ok("pause", "free")
    limited = 100 * share(busy(node, "limited"))
    assert 0.3 * SHARE < limited < 1.2 * SHARE
    node.ok("pause", "limited")
    node.ok("resume", "free")
    pid = busy(node, "free")
    # Others use this host too, so the best of some tries counts.
    assert any(100 * share(pid) > 1.3 * SHARE for _ in range(TRIES))
