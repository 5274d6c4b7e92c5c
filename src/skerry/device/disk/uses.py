"""The maker of one disk's uses: who may have it at once, who has written it, and its release.

The rules it keeps: a use that writes is alone, unless the disk is shared and the policy lets its
users exchange with one another; a label counts as having written the disk from before its use
takes effect, on disk; a disk is released only while nobody uses it, and what was on it is gone
before it is forgotten who wrote it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from skerry.device.disk import daemon, keys
from skerry.device.disk.history import DiskHistory
from skerry.device.disk.image import Image, open_image
from skerry.device.disk.release import wipe
from skerry.device.disk.use import DiskUse
from skerry.device.helper import Helper, Start
from skerry.errors import LayerMissing, LimitReached, StateError
from skerry.jail.errors import JailError
from skerry.label import Label
from skerry.monitor.domain import Resource
from skerry.monitor.mediate import explain_for, judge
from skerry.monitor.protocols import Decider, Overflow, Side
from skerry.system.model import ResourceSpec
from skerry.xsm.explain import Refused

Waiting = Callable[[], tuple[socket.socket, socket.socket]]
"""Makes a listener without a name and a socket that waits at it, over which no descriptor passes.

Raises `OSError`, or a `Denied`.
"""


class Means(NamedTuple):
    """What the disks of a node need of it.

    `label` gives that of a domain by name; `roots` is where jail roots lie, `overlays` where what
    is thrown away is written.
    """

    start: Start
    decider: Decider
    label: Callable[[str], Label]
    waiting: Waiting
    roots: Path
    overlays: Path
    history: DiskHistory
    keys: keys.Keys


class DiskUses:
    """Implements `device.resource.Uses` for one disk."""

    def __init__(self, means: Means, spec: ResourceSpec, resource: Callable[[], Resource]) -> None:
        """Serve a disk. Raises `HistoryLost` if it is not known who has written it."""
        self.means, self.spec = means, spec
        self.written = means.history.writers(spec.file)
        self._resource = resource
        self._uses: set[DiskUse] = set()
        self._one_at_a_time = asyncio.Lock()
        self._seen: dict[DiskUse, tuple[Label, ...]] = {}

    def mint(
        self, one_way: bool, overflow: Overflow = "block", *, size: int = 0, source: str = ""
    ) -> DiskUse:
        """Make a use, `one_way`: one that only reads. Raises `LimitReached`."""
        try:
            writes = not one_way and not self.spec.discard
            use = DiskUse(self, source, writes, self.means.waiting())
        except OSError as error:
            raise LimitReached(
                f"no connection for the disk {self.spec.name}: {error.strerror}",
                fix="raise the open-files limit (RLIMIT_NOFILE) or cut unused channels",
            ) from error
        use.discards = self.spec.discard and not one_way
        self._uses.add(use)
        self._seen[use] = self._resource().written
        return use

    def adopt(self, twins: Mapping[Side, int], helper: Helper | None, source: str) -> DiskUse:
        """Take over a use that was handed over."""
        use = DiskUse.adopt(self, twins, helper, source)
        self._uses.add(use)
        return use

    def close(self) -> None:
        """Hold nothing: uses live on."""

    def ended(self, use: DiskUse) -> None:
        """A use was cut."""
        self._uses.discard(use)
        self._seen.pop(use, None)

    @property
    def users(self) -> list[str]:
        """The domains that use the disk now, by name."""
        return sorted(use.source for use in self._uses)

    @staticmethod
    def one_time_key() -> str:
        """Return a key that is kept nowhere."""
        return keys.one_time()

    async def root(self) -> Path:
        """Return the root of a daemon's jail. Raises `LayerMissing`."""
        try:
            return await asyncio.to_thread(daemon.daemon_root, self.means.roots)
        except JailError as error:
            raise LayerMissing(
                error.message, fix=error.fix or "install qemu-system-common"
            ) from None

    async def opening(self, use: DiskUse, channel: int) -> None:
        """Have a use's daemon serve; one use of a disk at a time gets as far as that."""
        async with self._one_at_a_time:
            label = self.means.label(use.source)
            await self._still_allowed(use, label)
            # One that is cut while it is being opened is cut by whoever opened it, too late.
            image = await asyncio.to_thread(open_image, self.spec, use.writes)
            overlay: Path | None = None
            try:
                if use.writes:
                    await self._write(label, use)
                key = await asyncio.to_thread(self._key, image)
                if use.discards:
                    overlay = await asyncio.to_thread(self._overlay)
                await use.start(channel, image, overlay, key)
            except BaseException:
                if image.new:
                    image.path.unlink(missing_ok=True)
                raise
            finally:
                image.close()
                if overlay is not None:
                    overlay.unlink(missing_ok=True)

    def _key(self, image: Image) -> str:
        if not self.spec.encrypted:
            return ""
        name, path = self.spec.name, self.spec.file
        if image.new:
            return self.means.keys.make(name, path)
        if key := self.means.keys.read(name, path):
            return key
        raise keys.KeyLost(
            f"the disk {name} has no key here, so nothing can read {path}",
            fix="restore its key from a backup, or remove the image, and it is made anew",
        )

    def _overlay(self) -> Path:
        """Make the file that an overlay is written to."""
        self.means.overlays.mkdir(mode=0o700, exist_ok=True)
        path = self.means.overlays / f"{self.spec.name}-{keys.one_time()[:16]}"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return path

    async def writes(self, label: Label) -> None:
        """Let a label count as a writer from now on, durably: a user of the disk takes it.

        Raises `HistoryLost`, `Refused` if other users may not exchange with it.
        """
        async with self._one_at_a_time:
            await self._write(label, None)

    async def _write(self, label: Label, use: DiskUse | None) -> None:
        resource = self._resource()
        if label in resource.written:
            return
        for other in self._uses - {use}:
            theirs = self.means.label(other.source)
            if theirs != label:
                await self._ask(theirs, (label,))
        await self.means.history.add(self.spec.file, label)
        if label not in resource.written:
            resource.written = (*resource.written, label)

    async def _still_allowed(self, use: DiskUse, label: Label) -> None:
        """Ask about those who have begun to write since the use was decided."""
        seen = self._seen.get(use, ())
        await self._ask(label, tuple(w for w in self._resource().written if w not in seen))

    async def _ask(self, user: Label, writers: tuple[Label, ...]) -> None:
        """Raise `Refused` if a user of the disk may not exchange with these."""
        if not writers:
            return
        parties = {"source": user, "sink": self._resource().label}
        parties |= {f"writer{number}": writer for number, writer in enumerate(writers)}
        verdict = await judge(self.means.decider, "resource_both", parties)
        if not verdict.allowed:
            raise Refused(explain_for(verdict, parties))

    async def release(self) -> str:
        """Make what is on the disk unreadable and forget who wrote it; say what was done.

        Raises `StateError` while it is used, `BadImage`, `DiskInUse`, `KeyLost`, `HistoryLost`.
        """
        async with self._one_at_a_time:
            if self._uses:
                raise StateError(
                    f"the disk {self.spec.name} is used by {', '.join(self.users)}",
                    fix="stop these domains, or cut their use of it",
                )
            done = await asyncio.to_thread(wipe, self.spec, self.means.keys)
            await self.means.history.forget(self.spec.file)
            self._resource().written = ()
            return done


def sweep(overlays: Path) -> None:
    """Remove the overlays that a killed node left: nothing has a key to them."""
    with contextlib.suppress(FileNotFoundError):
        for path in overlays.iterdir():
            path.unlink(missing_ok=True)
