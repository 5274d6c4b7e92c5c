"""Host uids for jails: each domain and helper has one of its own.

The rules: a uid belongs to nobody else on the host; within the life of a node a uid is given once,
so no descriptor that an earlier holder left can meet a new one; when the range is used up, the next
one is refused. Nodes on one host use different parts of the range.
"""

from __future__ import annotations

import os
import pwd
import socket
from dataclasses import dataclass
from pathlib import Path

from skerry.jail.errors import IdentitiesUsed, JailError

DEFAULT_START = 165000
DEFAULT_END = 230536
BLOCK = 4096
"""Identities of one node: as many jails can it start in its life."""
SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")
NEWUIDMAP = Path("/usr/bin/newuidmap")


@dataclass(frozen=True)
class Identity:
    """A host uid and gid; `mapped`: subordinate ids of an ordinary user, entered by newuidmap."""

    uid: int
    gid: int
    mapped: bool = False

    def __str__(self) -> str:
        if self.uid == os.getuid():
            return "own"
        return f"{'sub' if self.mapped else 'root'}:{self.uid}:{self.gid}"


def own() -> Identity:
    """Return the caller's own identity: the layer `uid` is missing with it."""
    return Identity(os.getuid(), os.getgid())


def subordinate_ranges(file: Path, owner: set[str] | None = None) -> list[tuple[int, int]]:
    """Read the (first, end) ranges of /etc/subuid or /etc/subgid, all or those of one owner."""
    ranges = []
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    for line in lines:
        name, _, rest = line.strip().partition(":")
        first, _, count = rest.partition(":")
        if first.isdecimal() and count.isdecimal() and (owner is None or name in owner):
            ranges.append((int(first), int(first) + int(count)))
    return ranges


def taken_by(start: int, end: int) -> str:
    """Name what else uses ids from `start` up to `end`: a user, a subordinate range, or ''."""
    for entry in pwd.getpwall():
        if start <= entry.pw_uid < end or start <= entry.pw_gid < end:
            return f"user {entry.pw_name}"
    for file in (SUBUID, SUBGID):
        for first, stop in subordinate_ranges(file):
            if first < end and start < stop:
                return f"{file} ({first}-{stop - 1})"
    return ""


class IdentityPool:
    """Gives identities out, each once."""

    def __init__(
        self, start: int, end: int, *, gid_shift: int = 0, mapped: bool = False, held: int = -1
    ) -> None:
        """Use uids from `start` up to `end`; the gid is the uid plus `gid_shift`.

        `held` is the lock of a node before this one (`fileno`), whose part of the range it is.
        Raises IdentitiesUsed when other nodes hold every block of the range.
        """
        self._mapped = mapped
        self._shift = gid_shift
        if held >= 0:
            self._lock = socket.socket(fileno=held)
            self._next = int(self._lock.getsockname().rpartition(b"-")[2])
            self._end = min(self._next + BLOCK, end)
            return
        self._lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for block in range(start, end, BLOCK):
            try:
                # An abstract name is held by one process at a time and freed by its end.
                self._lock.bind(f"\0skerry-identities-{block}")
            except OSError:
                continue
            self._next, self._end = block, min(block + BLOCK, end)
            return
        self._lock.close()
        raise IdentitiesUsed(f"other nodes on this host use all of {start}-{end - 1}")

    def take(self, name: str) -> Identity:
        """Return an identity that nobody had. Raises IdentitiesUsed at the end of the range."""
        if self._next >= self._end:
            raise IdentitiesUsed(f"no identity left for {name}", fix="restart the node")
        uid, self._next = self._next, self._next + 1
        return Identity(uid, uid + self._shift, self._mapped)

    def skip(self, uid: int) -> None:
        """Never give this uid, or one below it in this part of the range."""
        if self._next <= uid < self._end:
            self._next = uid + 1

    def fileno(self) -> int:
        """Return the lock: who holds it keeps this part of the range from other nodes."""
        return self._lock.fileno()

    def close(self) -> None:
        """Let another node use this part of the range."""
        self._lock.close()


def _has(start: int, end: int) -> bool:
    """Say whether this user namespace maps these ids at all."""
    maps = (Path(f"/proc/self/{kind}_map").read_text().splitlines() for kind in ("uid", "gid"))
    spans = [[(int(first), int(size)) for first, _, size in map(str.split, m)] for m in maps]
    return all(any(f <= start and end <= f + size for f, size in span) for span in spans)


def open_pool(start: int = 0, end: int = 0, held: int = -1) -> IdentityPool | None:
    """Return the pool of this user, None where there is none: the layer `uid` is then missing.

    Root uses `start`-`end`, by default the first free range of that size from DEFAULT_START on;
    an ordinary user the first range in /etc/subuid. `held` is as for the pool. Raises JailError
    when the range given belongs to somebody, or when newuidmap is not installed.
    """
    if os.getuid() == 0:
        if start:
            owner = taken_by(start, end)
            if owner:
                raise JailError(f"uids {start}-{end - 1} belong to {owner}", fix="name others")
            return IdentityPool(start, end, held=held)
        size = DEFAULT_END - DEFAULT_START
        for first in range(DEFAULT_START, DEFAULT_START + 64 * size, size):
            if _has(first, first + size) and not taken_by(first, first + size):
                return IdentityPool(first, first + size, held=held)
        return None
    names = {str(os.getuid())}
    names.update(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == os.getuid())
    uids, gids = subordinate_ranges(SUBUID, names), subordinate_ranges(SUBGID, names)
    if not uids or not gids:
        return None
    if not os.access(NEWUIDMAP, os.X_OK):
        raise JailError("newuidmap is not installed", fix="install the package uidmap")
    (first, stop), (group, group_stop) = uids[0], gids[0]
    count = min(stop - first, group_stop - group)
    return IdentityPool(first, first + count, gid_shift=group - first, mapped=True, held=held)
