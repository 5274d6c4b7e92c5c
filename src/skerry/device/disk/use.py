"""One use of one disk: a storage daemon of its own between the image and the machine.

The rules it keeps (law 3): the machine gets a connected socket and nothing of the image; when `cut`
has returned the daemon is dead, which the kernel says (`deaths`), so that no byte reaches the image
any more, whatever was queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from skerry.deaths import DEATH_S, DEATHS, kill
from skerry.device.disk import daemon
from skerry.device.disk.acl import READ, WRITE, granted
from skerry.device.disk.image import Image
from skerry.device.helper import Helper, Program
from skerry.jail.identity import Identity
from skerry.monitor.protocols import Side
from skerry.threads import in_thread

if TYPE_CHECKING:
    from skerry.device.disk.uses import DiskUses


class DiskUse:
    """One use of a disk. `ends` has the machine's connection; the twins are that and the pipe.

    `serves`: a daemon has, or may have, the image.
    """

    def __init__(
        self,
        maker: DiskUses,
        source: str,
        writes: bool,
        waiting: tuple[socket.socket, socket.socket],
    ) -> None:
        """Make it of a listener and a socket that is connected to it. Raises `OSError`."""
        listener, connected = waiting
        self.source, self.writes, self.discards = source, writes, False
        self.serves = False
        self._maker = maker
        self._helper: Helper | None = None
        self._listener: socket.socket | None = listener
        self._ends: dict[Side, int] = {"source": connected.detach()}
        self._twins: dict[Side, int] = {}
        self._death = -1
        try:
            self._twins["source"] = os.dup(self._ends["source"])
            self._twins["sink"], self._death = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self.cut()
            raise

    @classmethod
    def adopt(
        cls, maker: DiskUses, twins: Mapping[Side, int], helper: Helper | None, source: str
    ) -> DiskUse:
        """Take over a use from its twins; without its daemon it can only be cut.

        Who knows that it only reads says so after it (`writes`).
        """
        use = cls.__new__(cls)
        use.source, use.writes, use.discards = source, not maker.spec.discard, False
        use.serves = True
        use._maker, use._helper, use._death = maker, helper, -1
        use._listener = None
        use._ends, use._twins = {}, dict(twins)
        return use

    @property
    def ends(self) -> Mapping[Side, int]:
        """The machine's connection; empty once handed over or cut."""
        return self._ends

    @property
    def bells(self) -> Mapping[Side, int]:
        """None."""
        return {}

    @property
    def twins(self) -> Mapping[Side, int]:
        """The descriptors that the cut works on; empty after it."""
        return self._twins

    @property
    def uid(self) -> int:
        """The host uid of its daemon, 0 where there is none of its own."""
        return self._helper.uid if self._helper else 0

    def is_whole(self) -> bool:
        """Say whether its daemon runs: the machine may still use it."""
        return self._helper is not None and not self._helper.process.exited.done()

    async def open(self, channel: int) -> None:
        """Start the daemon, which then serves. Raises a `Denied` or `SupervisorError`."""
        await self._maker.opening(self, channel)

    async def start(
        self, channel: int, image: Image, key: str, overlay: Path | None, once: str
    ) -> None:
        """Start the daemon on an image that is judged and locked, and have it serve."""
        if not self._twins:  # it was cut meanwhile
            return
        maker, spec = self._maker, self._maker.spec
        plan = daemon.Plan(
            qcow2=spec.format == "qcow2",
            writes=self.writes,
            make=spec.size if image.new and spec.format == "qcow2" else 0,
            key=key,
            once=once,
            rate=spec.rate,
        )
        bound = ((str(image.path), daemon.IMAGE),)
        over = ((str(overlay), daemon.OVERLAY),) if overlay else ()
        async with contextlib.AsyncExitStack() as stack:
            ours, theirs = socket.socketpair()
            control = daemon.Control(ours)
            stack.callback(control.close)
            stack.callback(theirs.close)
            fds = {2: self._death}
            fds[daemon.LISTENER_FD] = self._listener.fileno() if self._listener else -1
            # A cut closes the use's own meanwhile; their numbers may be others' then.
            lent = {number: os.dup(fd) for number, fd in fds.items()}
            for fd in lent.values():
                stack.callback(os.close, fd)
            lent |= {daemon.CONTROL_FD: theirs.fileno(), daemon.LOCK_FD: image.descriptor}
            program = Program(
                daemon.command(),
                lent,
                daemon.PROFILE,
                daemon.LIMITS,
                await maker.root(),
                binds=() if self.writes else bound,
                writable=(*(bound if self.writes else ()), *over),
                as_domain=True,
            )
            access = contextlib.ExitStack()
            stack.push_async_callback(in_thread, access.close)

            async def prepared(identity: Identity) -> None:
                if identity.uid == os.getuid():
                    return
                for path, _ in (*bound, *over):
                    right = READ | (WRITE if self.writes or (path, _) in over else 0)
                    grant = granted(Path(path), identity.uid, right)
                    await in_thread(access.enter_context, grant)

            # From now on a cut ends it, whatever becomes of this.
            helper = self._helper = await maker.means.start(channel, program, prepared)
            theirs.close()
            if not self._twins:
                await _end(helper)
                return
            try:
                await control.serve(plan)
            except BaseException as error:
                await _end(helper)
                if not self._twins and isinstance(error, daemon.DiskFailed):
                    return
                if isinstance(error, daemon.DiskFailed) and (words := self._last_words()):
                    raise daemon.DiskFailed(f"{error.message}: {words}") from None
                raise
            finally:
                self._close_own()

    def handed_over(self) -> None:
        """Close our copy of the end: the machine has its own. Idempotent."""
        while self._ends:
            os.close(self._ends.popitem()[1])

    def cut(self) -> int:
        """Kill the daemon, sever the connection, wait until nobody can write; returns 0.

        Asks nobody and never raises.
        """
        self.handed_over()
        self._close_own()
        helper, self._helper = self._helper, None
        twins, self._twins = self._twins, {}
        dying = kill([helper.process]) if helper is not None else []
        if "source" in twins:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(twins["source"])) as end:
                end.shutdown(socket.SHUT_RDWR)
        if helper is not None:
            what = f"the storage daemon of the disk {self._maker.spec.name}"
            DEATHS.wait(what, dying, [twins["sink"]] if "sink" in twins else [])
        for twin in twins.values():
            os.close(twin)
        self._maker.ended(self)
        return 0

    def _last_words(self) -> str:
        """Return what a daemon that failed said last, as far as it can be shown."""
        try:
            untrusted = os.read(self._twins["sink"], 4096).decode(errors="replace")
        except (OSError, KeyError):
            return ""
        return "".join(c if c.isprintable() else " " for c in untrusted[-300:]).strip()

    def _close_own(self) -> None:
        """Close what only the daemon is to hold."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._death >= 0:
            os.close(self._death)
            self._death = -1


async def _end(helper: Helper) -> None:
    helper.process.kill()
    await asyncio.wait({helper.process.exited}, timeout=DEATH_S)
