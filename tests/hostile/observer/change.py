"""Law 3, after an attack: a policy that refuses the attacker everything is loaded.

The rule: when the call has returned, all that the attacker had is gone, the generation is higher,
the trail says why each channel was cut, and nothing can cross any more. The last is asked of the
kernel, not of the node: duplicates of the descriptors that the mate's QEMU held are looked at, the
instant the call has returned. Its guest is honest, so what it gave up is what was cut.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import select
import struct
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.observer import processes
from tests.hostile.observer.neighbours import NoAnswer, Node, Scene
from tests.hostile.observer.outcome import Finding, Seen, Unseen

GIVEN_UP_S = 5.0
"""How long the mate may take to close its ends, in seconds; they are dead already."""

RECORDS = 60
"""How many records at the end of the trail are read: more than one change makes here."""

_HELD = re.compile(r"(socket|pipe):\[\d+\]|/memfd:.*")
_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)


def changed(node: Node, scene: Scene, supervisor: int) -> Seen:
    """Load the refusing policy, say what of it did not hold, and load the old one again."""
    try:
        before = _something_to_lose(node, scene)
        if all(row["state"] != "live" for row in before):
            yield Unseen("a change of policy: the attacker had nothing left to lose")
        yield from _load(node, scene, supervisor, before)
        done = node.ask("policy", "load", scene.policy)
        if done.returncode:
            yield Finding("hindered", f"the old policy can't be loaded again: {_said(done.stderr)}")
    except NoAnswer as none:
        yield Finding("hindered", str(none))


def _something_to_lose(node: Node, scene: Scene) -> list[dict[str, Any]]:
    """Return the attacker's channels; one that runs and has none any more is given one."""
    found = _of(node.rows("channels"), scene.attacker)
    if not found:
        node.ask("connect", scene.attacker, scene.mate, "--name", "again")
        found = _of(node.rows("channels"), scene.attacker)
    return found


def _load(node: Node, scene: Scene, supervisor: int, before: Sequence[dict[str, Any]]) -> Seen:
    generation = node.rows("policy", "show")[0]["generation"]
    attacker, mate = (processes.qemu_of(supervisor, n) for n in (scene.attacker, scene.mate))
    with Ends(mate) as ends:
        done = node.ask("policy", "load", scene.refusing, "--json")
        ends.look()
        if done.returncode:
            yield Finding("hindered", f"a policy can't be loaded: {_said(done.stderr)}")
            return
        with_mate = [row for row in before if scene.mate in (row["source"], row["sink"])]
        yield from ends.crossed(attacker, sum(row["state"] == "live" for row in with_mate))
    after = _of(node.rows("channels"), scene.attacker)
    records = node.rows("audit", "tail", "-n", str(RECORDS))
    yield from kept(json.loads(done.stdout), generation, before, after, records)
    again = node.ask("connect", scene.attacker, scene.mate, "--name", "after")
    if again.returncode == 0:
        yield Finding("reached", "the attacker got a channel that the new policy refuses")


def kept(
    answer: Mapping[str, Any],
    generation: int,
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    records: Sequence[dict[str, Any]],
) -> Iterator[Finding]:
    """Say what a change left of the attacker's channels, and what of it is not on record."""
    for row in after:
        yield Finding("reached", f"the new policy refuses {row['port']}, and it is {row['state']}")
    new = answer["generation"]
    if new <= generation:
        yield Finding("reached", f"the generation is {new} after a change, it was {generation}")
    since = [each for each in records if each["n"] > answer["record"]]
    loaded = [each["fields"] for each in since if each["event"] == "loaded"]
    if [each["generation"] for each in loaded] != [new]:
        yield Finding("reached", f"the trail has no record of the policy of generation {new}")
    whys = {each["fields"]["channel"]: each["fields"] for each in since if each["event"] == "cut"}
    for row in before:
        if f"generation {new}" not in str(whys.get(row["id"], {}).get("why")):
            yield Finding("reached", f"the trail does not say that {row['port']} was cut")


class Ends:
    """Duplicates of what a QEMU holds: sockets, pipes and memories. Use as a context manager."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._held: dict[str, int] | None = {}
        self._open: dict[str, str] = {}

    def __enter__(self) -> Ends:
        """Take them. Where we may not there is nothing to look at, and that is said."""
        if not self._pid:
            return self
        try:
            self._held = _duplicates(self._pid)
        except PermissionError:
            self._held = None
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        for descriptor in (self._held or {}).values():
            os.close(descriptor)

    def look(self) -> None:
        """Take down over which of them something can cross now, or waits to be read."""
        for what, descriptor in (self._held or {}).items():
            if not what.startswith("/") and (why := carries(descriptor)):
                self._open[what] = why

    def crossed(self, attacker: int, least: int) -> Seen:
        """Say what was open at the look of what the QEMU gives up, at `least` so many.

        Of a memory: whether the attacker's QEMU still holds it.
        """
        if self._held is None:
            yield Unseen("ends of another uid's channels")
            return
        gone = self._given_up(least)
        if len(gone) < least:
            yield Finding("hindered", f"of {least} channels that were cut {len(gone)} were let go")
        for what in gone:
            if what in self._open:
                yield Finding("reached", f"after the change {what} {self._open[what]}")
            if what.startswith("/") and _shared(attacker, self._held[what]):
                yield Finding("reached", f"after the change the attacker's QEMU still holds {what}")

    def _given_up(self, least: int) -> list[str]:
        end = time.monotonic() + GIVEN_UP_S
        while True:
            now = set(_links(self._pid).values())
            gone = [what for what in self._held or {} if what not in now]
            if len(gone) >= least or time.monotonic() > end:
                return gone
            time.sleep(0.02)


def carries(descriptor: int) -> str:
    """Say how something can cross at an end of a stream, link or pipe; nothing if it can't."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLOUT)
    events = dict(poll.poll(0)).get(descriptor, 0)
    queued = bytearray(4)
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.FIONREAD, queued)
    (waiting,) = struct.unpack("i", queued)
    if waiting:
        return f"has {waiting} bytes that wait to be read"
    return "" if events & (select.POLLHUP | select.POLLERR) else "is open"


def _shared(pid: int, memory: int) -> bool:
    """Say whether a process has a memory mapped or open."""
    inode = os.fstat(memory).st_ino
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/memfd:" in line and int(line.split()[4]) == inode:
                return True
    with contextlib.suppress(PermissionError):
        return any(what.endswith(f" {inode}") for what in _links(pid).values())
    return False


def _links(pid: int) -> dict[int, str]:
    """Return what each descriptor of a process leads to. Raises `PermissionError`."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                what = str(link.readlink())
                # Memories share a name; the inode tells them apart.
                suffix = f" {link.stat().st_ino}" if what.startswith("/memfd:") else ""
                found[int(link.name)] = what + suffix
    return found


def _duplicates(pid: int) -> dict[str, int]:
    """Return a descriptor of ours for each end that a process holds. Raises `PermissionError`."""
    found: dict[str, int] = {}
    pidfd = os.pidfd_open(pid)
    try:
        for number, what in _links(pid).items():
            if not _HELD.fullmatch(what) or what in found:
                continue
            descriptor = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
            if descriptor >= 0:
                found[what] = descriptor
            elif ctypes.get_errno() == errno.EPERM:
                raise PermissionError(errno.EPERM, "pidfd_getfd")
    finally:
        os.close(pidfd)
    return found


def _of(rows: Sequence[dict[str, Any]], domain: str) -> list[dict[str, Any]]:
    return [row for row in rows if domain in (row["source"], row["sink"])]


def _said(untrusted: bytes) -> str:
    return untrusted.decode(errors="replace").strip()[:200]
