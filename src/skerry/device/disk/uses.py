"""The maker of one disk's uses: who may have it at once, and its release.

The rules it keeps: a use that writes is alone, unless the disk is shared (who then exchanges with
whom the monitor has asked before); a disk is released only while nobody uses it, and what was on it
is gone before it is forgotten who wrote it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from skerry.device.disk import daemon, keys, luks
from skerry.device.disk.header import BadImage
from skerry.device.disk.image import DiskInUse, Image, open_image
from skerry.device.disk.release import require_gone, wipe
from skerry.device.disk.use import DiskUse
from skerry.device.helper import Helper, Start
from skerry.errors import LayerMissing, LimitReached, StateError
from skerry.jail.errors import JailError
from skerry.monitor.protocols import Side
from skerry.system.model import ResourceSpec
from skerry.threads import in_thread

Waiting = Callable[[], tuple[socket.socket, socket.socket]]
"""Makes a listener without a name and a socket that waits at it, over which no descriptor passes.

Raises `OSError`, or a `Denied`.
"""


class Means(NamedTuple):
    """What the disks of a node need of it.

    `roots` is where jail roots lie, `overlays` where what is thrown away is written.
    """

    start: Start
    waiting: Waiting
    roots: Path
    overlays: Path
    keys: keys.Keys


class DiskUses:
    """Implements `device.resource.Uses` for one disk."""

    def __init__(self, means: Means, spec: ResourceSpec) -> None:
        """Serve a disk."""
        self.means, self.spec = means, spec
        self._uses: set[DiskUse] = set()
        self._one_at_a_time = asyncio.Lock()
        self._releasing = False

    def mint(
        self, one_way: bool, overflow: str = "block", *, size: int = 0, source: str = ""
    ) -> DiskUse:
        """Make a use, `one_way`: one that only reads. Raises `LimitReached`, `DiskInUse`."""
        if self._releasing:
            raise DiskInUse(f"the disk {self.spec.name} is being released", fix="try again")
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

    @property
    def users(self) -> tuple[str, ...]:
        """The domains that use the disk now, by name."""
        return tuple(sorted(use.source for use in self._uses))

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
            self._need_room_for(use)
            with contextlib.ExitStack() as made:
                try:
                    await self._serve(use, channel, made)
                except OSError as error:
                    raise BadImage(f"{self.spec.file} is not served: {error.strerror}") from None

    def _need_room_for(self, use: DiskUse) -> None:
        """Raise `DiskInUse` if one that writes would not be alone.

        By what was given out here: the locks on the image are the daemons', who may drop them.
        """
        others = [other for other in self._uses - {use} if other.serves]
        if others and not self.spec.shared and any(one.writes for one in (use, *others)):
            raise DiskInUse(
                f"{self.spec.file} is in use by another domain",
                fix="end the other use; one that writes is alone, unless the disk is shared",
            )

    async def _serve(self, use: DiskUse, channel: int, made: contextlib.ExitStack) -> None:
        once = keys.one_time() if use.discards else ""
        image, key, overlay = await in_thread(self._prepare, use.writes, once, made)
        use.serves = True
        await use.start(channel, image, key, overlay, once)

    def _prepare(
        self, writes: bool, once: str, made: contextlib.ExitStack
    ) -> tuple[Image, str, Path | None]:
        """Open what a daemon is to serve, or make it. `made` lets go of it, and undoes it where
        that failed, also where nobody waits for it any more."""
        image = open_image(self.spec, writes)
        made.callback(image.close)
        made.push(
            lambda kind, *_: image.path.unlink(missing_ok=True) if kind and image.new else None
        )
        key = self._key(image)
        if not writes:
            image.only_read()
        if not once:
            return image, key, None
        overlay = self._overlay(once)
        made.callback(overlay.unlink, missing_ok=True)
        return image, key, overlay

    def _key(self, image: Image) -> str:
        """Return the key of an encrypted disk; one that is new is laid out under it."""
        if not self.spec.encrypted:
            return ""
        name, path = self.spec.name, self.spec.file
        if image.new:
            key = self.means.keys.make(path, name)
            luks.lay_out(
                image.descriptor, key, 0 if self.spec.format == "qcow2" else self.spec.size
            )
            return key
        if key := self.means.keys.read(path):
            return key
        raise keys.KeyLost(
            f"the disk {name} has no key here, so nothing can read {path}",
            fix="restore its key from a backup, or remove the image, and it is made anew",
        )

    def _overlay(self, once: str) -> Path:
        """Make the file that an overlay is written to, under a key that is kept nowhere."""
        self.means.overlays.mkdir(mode=0o700, exist_ok=True)
        path = self.means.overlays / f"{self.spec.name}-{keys.one_time()[:16]}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            luks.lay_out(descriptor, once, 0)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        return path

    async def release(self, *, gone: bool = False) -> str:
        """Make what is on the disk unreadable; say what was done. Who wrote it may be forgotten.

        `gone`: its image is gone for good, and must not be there. Raises `StateError` while it is
        used, `BadImage`, `DiskInUse`, `KeyLost`.
        """
        if self._uses or self._releasing:
            users = ", ".join(self.users) or "its release"
            raise StateError(
                f"the disk {self.spec.name} is used by {users}",
                fix="stop these domains, or cut their use of it",
            )
        if self.spec.discard:
            raise StateError(
                f"nothing is ever written to the disk {self.spec.name}",
                fix="to release what was on it before, leave `discard` out of the system file",
            )
        self._releasing = True
        try:
            work = require_gone if gone else wipe
            return await asyncio.to_thread(work, self.spec, self.means.keys)
        except OSError as error:
            raise BadImage(f"{self.spec.file} could not be released: {error.strerror}") from None
        finally:
            self._releasing = False


def sweep(overlays: Path) -> None:
    """Remove the overlays that a killed node left: nothing has a key to them."""
    with contextlib.suppress(FileNotFoundError):
        for path in overlays.iterdir():
            path.unlink(missing_ok=True)
