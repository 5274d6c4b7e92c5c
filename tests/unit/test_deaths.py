"""A helper is dead when its jail is, whatever it does to its descriptors; cuts wait together."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from skerry import deaths
from skerry.deaths import DEATH_S, LEAST_S, Deaths, Patience, kill
from skerry.device.disk.use import DiskUse
from skerry.device.helper import Helper
from skerry.device.uplink.use import Uplink
from skerry.node.opening import note_late
from tests.support.monitor import ToyAudit

JAIL = """
import os, sys, time
if pid := os.fork():
    print(pid, flush=True)
else:
    os.close(2)  # as one that would be taken for dead
time.sleep(600)
"""


class Jail:
    """A process with another below it that outlives it, and has let its end of a pipe go."""

    def __init__(self) -> None:
        self.pipe, far = os.pipe()
        words = [sys.executable, "-I", "-S", "-c", JAIL]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=far)
        os.close(far)
        self.pid, self.pidfd = self._process.pid, os.pidfd_open(self._process.pid)
        self.exited: Any = asyncio.Future(loop=asyncio.new_event_loop())
        assert self._process.stdout
        self.inner = int(self._process.stdout.readline())
        self._inner_fd = os.pidfd_open(self.inner)

    def kill(self) -> None:
        """End the outer process alone."""
        self._process.kill()

    def end_inner(self) -> None:
        """End the inner one, as the kernel would."""
        signal.pidfd_send_signal(self._inner_fd, signal.SIGKILL)

    def is_dead(self) -> bool:
        """Whether the inner one has ended."""
        return bool(select.select([self._inner_fd], [], [], 0)[0])

    def close(self) -> None:
        """End what is left."""
        self.kill()
        self.end_inner()
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self.exited.get_loop().close()
        for descriptor in (self._inner_fd, self.pidfd):
            os.close(descriptor)


@pytest.fixture
def jail() -> Iterator[Jail]:
    """A jail whose inner process is ended a moment after the outer one."""
    made = Jail()
    yield made
    made.close()


def test_who_has_closed_its_end_of_the_pipe_is_not_dead(jail: Jail) -> None:
    """The wait is over when the inner process is; the control believes the pipe, too early."""
    later = threading.Timer(0.3, jail.end_inner)
    dying = kill([jail])
    assert Deaths().wait("control", pipes=[jail.pipe]) and not jail.is_dead()
    later.start()
    assert Deaths().wait("jail", dying) and jail.is_dead()
    later.join()
    os.close(jail.pipe)


@pytest.mark.parametrize("kind", ["disk", "uplink"])
def test_a_cut_waits_for_all_that_serves_the_use(jail: Jail, kind: str) -> None:
    """When it has returned the inner process is dead, whose end of the pipe was long gone."""
    near, far = socket.socketpair()
    maker: Any = type("Maker", (), {"ended": lambda *_: None})()
    maker.name, maker.spec = "web", type("Spec", (), {"name": "data", "discard": False})
    twins: Any = {"source": near.detach(), "sink": jail.pipe}
    helper = Helper(jail, 0)
    use: DiskUse | Uplink
    if kind == "disk":
        use = DiskUse.adopt(maker, twins, helper, "one")
    else:
        use = Uplink.adopt(maker, twins, helper)
    later = threading.Timer(0.3, jail.end_inner)
    later.start()
    use.cut()
    assert jail.is_dead()
    later.join()
    far.close()


V1 = "4:memory:/{name}\n2:cpu,cpuacct:/{name}\n0::/\n"


@pytest.mark.parametrize(
    ("lines", "file", "free"),
    [(V1, "cpu/{name}/cpu.cfs_quota_us", "-1"), ("0::/{name}\n", "{name}/cpu.max", "max")],
)
@pytest.mark.parametrize("name", ["up/skerry.7.r-1.3.abcdef", "up/the-host", "skerry.service/x"])
def test_who_is_killed_need_not_wait_for_its_share_of_the_processors(
    jail: Jail,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    file: str,
    free: str,
    name: str,
) -> None:
    """The bound of its group goes; the control: one that is no jail's stays as it is."""
    monkeypatch.setattr(deaths, "_GROUPS", tmp_path)
    quota = tmp_path / file.format(name=name)
    quota.parent.mkdir(parents=True)
    quota.write_text("bound")
    process = tmp_path / "proc" / str(jail.pid)
    process.mkdir(parents=True)
    (process / "cgroup").write_text(lines.format(name=name))
    monkeypatch.setattr(deaths, "_PROC", tmp_path / "proc")
    for pidfd in kill([jail]):
        os.close(pidfd)
    assert quota.read_text() == (free if "abcdef" in name else "bound")
    os.close(jail.pipe)


def test_what_is_not_seen_dead_is_told_and_recorded(
    jail: Jail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait ends by its time, and the trail has what it was for."""
    monkeypatch.setattr(deaths, "DEATH_S", 0.1)
    trail = ToyAudit()
    watch = Deaths()
    watch.late = lambda what, waited_s: note_late(trail, what, waited_s)
    assert not watch.wait("the helper", kill([jail]))
    ((event, fields),) = trail.records
    assert (event, fields["what"]) == ("not-seen-dead", "the helper")
    assert cast(float, fields["waited_s"]) >= 0.1
    jail.end_inner()
    assert watch.wait("the same", [os.pidfd_open(jail.pid)])
    assert len(trail.records) == 1
    os.close(jail.pipe)


def test_all_cuts_together_wait_for_a_bounded_time() -> None:
    """Of many that do not die the first has the whole time, the others little; it comes back."""
    patience, now = Patience(), 100.0
    first = patience.left(now)
    assert first == DEATH_S
    patience.spent(now, now + first)
    now += first
    for _ in range(50):
        left = patience.left(now)
        assert left <= LEAST_S
        patience.spent(now, now + left)
        now += left
    assert patience.left(now + 5) == pytest.approx(0.5)
    assert patience.left(now + 1000) == DEATH_S


def test_what_died_at_once_costs_the_others_nothing() -> None:
    """A thousand that are dead within a millisecond leave the last one its time."""
    patience, now = Patience(), 100.0
    for _ in range(1000):
        assert patience.left(now) > DEATH_S / 4
        patience.spent(now, now + 0.001)
        now += 0.002


def test_no_descriptor_is_left(jail: Jail) -> None:
    """Neither of what died nor of what did not, nor where a process is gone already."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    watch = Deaths()
    assert watch.wait("pipe", kill([]), [])
    begun = time.monotonic()
    threading.Timer(0.1, jail.end_inner).start()
    assert watch.wait("jail", kill([jail]))
    assert time.monotonic() - begun < DEATH_S
    after = len(list(Path("/proc/self/fd").iterdir()))
    assert after == before
    os.close(jail.pipe)
