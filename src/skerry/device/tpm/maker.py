"""The uses of one TPM: whose it is, the start of its swtpm, and the cut.

The rules: a TPM belongs to the first domain that used it, which is on the disk before that use
takes effect, and to no other ever after; it has one use at a time; a use is handed over only when
its swtpm has answered with the state that was kept; the cut ends the swtpm and both ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from skerry.device.helper import Helper, Start
from skerry.device.tpm import commands
from skerry.device.tpm.program import swtpm
from skerry.device.tpm.running import Running, Words
from skerry.device.tpm.state import Kept, Record
from skerry.errors import Denied, LayerMissing
from skerry.jail.errors import JailError
from skerry.jail.identity import Identity
from skerry.monitor.protocols import Side


class Pair(Protocol):
    """Two connected ends over which no descriptor passes: a two-way stream's bridge."""

    @property
    def ends(self) -> Mapping[Side, int]:
        """The descriptors to hand over."""

    @property
    def twins(self) -> Mapping[Side, int]:
        """The descriptors that the cut works on."""

    def is_whole(self) -> bool:
        """Say whether neither direction was ended."""

    def handed_over(self) -> None:
        """Close `ends`."""

    def cut(self) -> int:
        """End both directions, take what is queued, close everything."""


class Pairs(Protocol):
    """Makes pairs, and takes over those that were handed over."""

    def mint(self) -> Pair:
        """Make a pair. Raises `TransportError`, `LimitReached`."""

    def adopt(self, twins: Mapping[Side, int]) -> Pair:
        """Take over a pair of which both twins are there."""

    def close(self) -> None:
        """Let go of what makes them."""


class TpmUse:
    """One use of a TPM by its domain. `point` is that of its attestation key, once it is open."""

    bells: Mapping[Side, int] = {}

    def __init__(self, tpm: Tpm, pair: Pair, source: str) -> None:
        self.point = b""
        self._tpm = tpm
        self._pair = pair
        self._source = source
        self._helper: Helper | None = None
        self._cut = False

    @classmethod
    def adopt(cls, tpm: Tpm, pair: Pair, helper: Helper | None, source: str) -> TpmUse:
        """Take over a use; without its helper it can only be cut."""
        use = cls(tpm, pair, source)
        use._helper = helper
        with contextlib.suppress(Denied):
            record = tpm.kept.read()
            use.point = bytes.fromhex(record.point) if record else b""
        return use

    @property
    def ends(self) -> Mapping[Side, int]:
        """The machine's end; empty once handed over or cut."""
        ends = self._pair.ends
        return {"source": ends["source"]} if "source" in ends else {}

    @property
    def twins(self) -> Mapping[Side, int]:
        """The descriptors that the cut works on; empty after it."""
        return {} if self._cut else self._pair.twins

    @property
    def uid(self) -> int:
        """The host uid of its swtpm."""
        return self._helper.uid if self._helper else 0

    def is_whole(self) -> bool:
        """Say whether its swtpm runs and the machine may still use it."""
        helper = self._helper
        runs = helper is not None and not helper.process.exited.done()
        return runs and not self._cut and self._pair.is_whole()

    async def open(self, channel: int) -> None:
        """Start its swtpm over the state that was kept, which is made at the first use.

        Raises `Denied`, `SupervisorError`; then nothing runs.
        """
        record = await self._tpm.claimed(channel, self._source)
        if not self.twins:  # cut meanwhile
            return
        with (
            _lent(self._pair.ends) as (near, far),
            contextlib.closing(await self._tpm.start(channel, record, near, far)) as running,
        ):
            if not self.twins:
                running.helper.process.kill()
                return
            self._helper = running.helper
            await running.ask(commands.PROBE)
        self.point = bytes.fromhex(record.point)

    def handed_over(self) -> None:
        """Close our copies of the ends. Idempotent."""
        self._pair.handed_over()

    def cut(self) -> int:
        """End the swtpm and both directions; return the bytes that were taken out."""
        if self._cut:
            return 0
        self._cut = True
        if self._helper is not None:
            self._helper.process.kill()
        self._tpm.released(self)
        return self._pair.cut()


class Tpm:
    """The maker of one TPM's uses: `device.resource.Uses`."""

    def __init__(self, kept: Kept, root: Callable[[], Path], start: Start, pairs: Pairs) -> None:
        """`root` returns the root of a swtpm's jail; may raise JailError."""
        self.kept = kept
        self._root = root
        self._start = start
        self._pairs = pairs
        self._use: TpmUse | None = None

    def mint(
        self, one_way: bool, overflow: str = "block", *, size: int = 0, source: str = ""
    ) -> TpmUse:
        """Make a use. Raises `Denied` for a domain whose TPM it is not, and while it is used."""
        self._require(self.kept.read(), source)
        if self._use is not None:
            raise Denied(
                f"the TPM {self.kept.name} is used already",
                fix="wait until the domain's machine has ended",
                code="TPM-IN-USE",
            )
        self._use = TpmUse(self, self._pairs.mint(), source)
        return self._use

    def adopt(self, twins: Mapping[Side, int], helper: Helper | None, source: str) -> TpmUse:
        """Take over a use: `device.resource.Uses`."""
        self._use = TpmUse.adopt(self, self._pairs.adopt(twins), helper, source)
        return self._use

    def close(self) -> None:
        """Let go of what makes pairs; uses that were minted live on."""
        self._pairs.close()

    def released(self, use: TpmUse) -> None:
        """Let another use be minted."""
        if self._use is use:
            self._use = None

    def _require(self, record: Record | None, source: str) -> None:
        if record is not None and record.owner != source:
            raise Denied(
                f"the TPM {self.kept.name} belongs to domain {record.owner}, not to {source}",
                fix=f"declare a TPM of its own for {source}",
                code="TPM-OWNED",
            )

    async def claimed(self, channel: int, source: str) -> Record:
        """Return the record of a TPM that is this domain's and was made. Raises `Denied`."""
        record = await asyncio.to_thread(self.kept.claim, source)
        self._require(record, source)
        return record if record.point else await self._make(channel, record)

    async def _make(self, channel: int, record: Record) -> Record:
        """Make the TPM and its attestation key, before any machine can speak to it."""
        pair = self._pairs.mint()
        try:
            with (
                _lent(pair.ends) as (near, far),
                # Not the channel's helper, whose end would cut the channel.
                contextlib.closing(await self.start(-channel, record, near, far)) as running,
            ):
                try:
                    point = await running.key_made()
                finally:
                    running.helper.process.kill()
                    await asyncio.shield(running.helper.process.exited)
        finally:
            pair.cut()
        return await asyncio.to_thread(self.kept.made, record, point)

    async def start(
        self, channel: int, record: Record, near: socket.socket, far: socket.socket
    ) -> Running:
        """Start a swtpm that hears `far`. Raises `Denied`, `SupervisorError`."""
        key = await asyncio.to_thread(self.kept.key, record)
        try:
            root = await asyncio.to_thread(self._root)
        except JailError as error:
            raise LayerMissing(error.message, fix=error.fix or "install swtpm") from None

        async def prepared(identity: Identity) -> None:
            await asyncio.to_thread(self.kept.give, record, identity)

        words = Words()
        try:
            with _told(key) as told:
                program = swtpm(root, self.kept.folder, far.fileno(), told, words.fileno())
                helper = await self._start(channel, program, prepared)
            return Running(self.kept.name, helper, near, words)
        except BaseException:
            words.close()
            raise


@contextlib.contextmanager
def _lent(ends: Mapping[Side, int]) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Lend copies of both ends: a cut closes the pair's own meanwhile."""
    with (
        socket.socket(fileno=os.dup(ends["source"])) as near,
        socket.socket(fileno=os.dup(ends["sink"])) as far,
    ):
        yield near, far


@contextlib.contextmanager
def _told(key: bytes) -> Iterator[int]:
    """Lend the end of a pipe that says the key, once."""
    read, write = os.pipe()
    try:
        os.write(write, key)
        os.close(write)
        yield read
    finally:
        os.close(read)
