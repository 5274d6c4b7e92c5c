"""A disk: its throughput through the partition, against the same export wired by hand."""

from __future__ import annotations

import contextlib
import re
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.bare import BareQemu
from bench.measure import Row, say, versus
from bench.node import RunningNode, running
from bench.place import open_domain_uids
from skerry.errors import SkerryError
from skerry.machine.agent import Agent
from skerry.machine.qemu.command import QemuSpec
from tests.support.nbd import BareDisk

DISK = "data"
DISK_MB = 128
TRANSFER_MB = 64
TRANSFERS = 5
WAIT_S = 120.0

SYSTEM = """\
name = "bench"
policy = "dummy"
[jail]
accept-missing = {missing}
[domains.one]
label = "domU"
autostart = false
uses = ["{disk}"]
[resources.{disk}]
kind = "disk"
label = "domU"
file = "{folder}/ours.img"
size = "{size}M"
"""


def throughput() -> Row:
    """Writing and reading a raw disk in pieces of 64 KiB past the guest's memory.

    The other: the same daemon without a jail, a QEMU started by hand. Every measure boots a machine
    of its own.
    """
    missing = ["cgroup"] if open_domain_uids() else ["cgroup", "uid"]
    with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir="/var/tmp") as name:
        text = SYSTEM.format(missing=missing, disk=DISK, folder=name, size=DISK_MB)
        image = Path(name) / "theirs.img"
        with image.open("wb") as file:
            file.truncate(DISK_MB << 20)
        with running(text) as node:
            say("one boot of each to warm up; every measure boots a machine of its own")
            node.run(_ours(node))
            spec = node.run(_spec(node))
            node.run(_bare(spec, image))
            return versus(
                "disk-vs-bare",
                "MB/s",
                lambda: node.run(_ours(node)),
                lambda: node.run(_bare(spec, image)),
                ">= 0.95",
                runs=12,
                seconds=500,
            )


async def _ours(node: RunningNode) -> float:
    await node.start("one")
    try:
        return await transfers(await node.agent("one"))
    finally:
        await node.kill("one")


async def _spec(node: RunningNode) -> QemuSpec:
    """Describe the node's machine, which has slots, for those that are started by hand."""
    await node.start("one")
    try:
        return msgspec.structs.replace(node.spec("one"), board="pc")
    finally:
        await node.kill("one")


async def _bare(spec: QemuSpec, image: Path) -> float:
    with _served(image) as disk, contextlib.closing(BareQemu(spec)) as machine:
        machine.plug_disk(DISK, disk.end.fileno())
        return await transfers(await machine.agent())


@contextlib.contextmanager
def _served(image: Path) -> Iterator[BareDisk]:
    disk = BareDisk(image)
    try:
        yield disk
    finally:
        disk.close()


async def transfers(agent: Agent) -> float:
    """Return the median MB/s of some transfers, the first of which only warms up."""
    await _transfer(agent)
    return statistics.median([await _transfer(agent) for _ in range(TRANSFERS)])


async def _transfer(agent: Agent) -> float:
    """Write and read `TRANSFER_MB` each."""
    now = "now() { { read a; read a; read a; } </proc/timer_list; echo $a; }"
    there = f"until [ -b /dev/disk/{DISK} ]; do sleep 0.1; done"
    many = f"bs=64k count={TRANSFER_MB * 16}"
    write = f"dd if=/dev/zero of=/dev/disk/{DISK} {many} oflag=direct 2>/dev/null"
    read = f"dd if=/dev/disk/{DISK} of=/dev/null {many} iflag=direct 2>/dev/null"
    said = bytearray()
    code = await agent.run(
        ["sh", "-c", f"{now}; {there}; now; {write} && {read}; echo $?; now"],
        output=lambda _, data: said.extend(data),
        timeout_s=WAIT_S,
    )
    found = re.findall(r"now at (\d+) nsecs", said.decode(errors="replace"))
    if code or len(found) != 2 or b"\n0\n" not in said:
        raise SkerryError(f"the guest did not do the transfer: {bytes(said[-200:])!r}")
    seconds = (int(found[1]) - int(found[0])) / 1e9
    return 2 * TRANSFER_MB * (1 << 20) / 1e6 / seconds
