"""A swtpm that has just been started, spoken to by the node before any machine is.

The rule: it answers by a deadline, or what it said of itself is the reason of a refusal; nothing
that it says or sends takes more memory than is set aside for it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from typing import Any

from skerry.device.helper import Helper
from skerry.device.tpm import commands
from skerry.device.tpm.commands import TpmError
from skerry.device.tpm.state import BROKEN
from skerry.errors import Denied

ANSWER_S = 10.0
"""How long a swtpm that starts may take for one answer. It takes some 5 ms."""

MAX_WORDS = 4096
"""Most bytes of a swtpm's own words; more is lost."""

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Running:
    """A swtpm and the node's copy of the machine's end. `close` forgets its words, and no more."""

    def __init__(self, name: str, helper: Helper, near: socket.socket, words: Words) -> None:
        self.helper = helper
        self._name = name
        self._near = near
        self._words = words

    def close(self) -> None:
        """Forget what it says of itself."""
        self._words.close()

    async def key_made(self) -> bytes:
        """Make the attestation key of a new TPM; return its point. Raises `Denied`."""
        try:
            commands.answer(await self.ask(commands.STARTUP))
            made = commands.handle_of(await self.ask(commands.create_key()))
            commands.answer(await self.ask(commands.keep_key(made)))
            point = commands.point_of(await self.ask(commands.read_key()))
            commands.answer(await self.ask(commands.SHUTDOWN))
        except TpmError as error:
            raise self._refusal(str(error)) from None
        return point

    async def ask(self, command: bytes) -> bytes:
        """Return the whole answer to a command. Raises `Denied` with the swtpm's own words."""
        # The socket does not end with the swtpm: the node itself holds a twin of its end.
        asking = asyncio.ensure_future(self._ask(command))
        over = asyncio.ensure_future(asyncio.shield(self.helper.process.exited))
        either: set[asyncio.Future[Any]] = {asking, over}
        first = asyncio.FIRST_COMPLETED
        try:
            done, _ = await asyncio.wait(either, timeout=ANSWER_S, return_when=first)
            if asking in done:
                return asking.result()
        except OSError as error:
            raise self._refusal(str(error.strerror)) from None
        finally:
            over.cancel()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            self._near.setblocking(True)  # the machine's own end is the same socket
        if not done:
            raise self._refusal(f"swtpm did not answer in {ANSWER_S:g} s")
        raise self._refusal("swtpm has ended")

    async def _ask(self, command: bytes) -> bytes:
        loop, untrusted = asyncio.get_running_loop(), b""
        self._near.setblocking(False)
        await loop.sock_sendall(self._near, command)
        while not commands.is_answer(untrusted):
            room = commands.MAX_RESPONSE + 1 - len(untrusted)
            piece = await loop.sock_recv(self._near, room) if room else b""
            if not piece:
                raise self._refusal("its answer is none")
            untrusted += piece
        return untrusted

    def _refusal(self, why: str) -> Denied:
        return Denied(
            f"the TPM {self._name} did not start over its state: {self._words.text() or why}",
            fix="restore its files from a copy, or give the domain another TPM",
            code=BROKEN,
        )


class Words:
    """What a swtpm says on its standard error, in memory that it can't make larger."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("words", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(self._fd, MAX_WORDS)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)

    def fileno(self) -> int:
        """Return the descriptor that is the swtpm's standard error."""
        return self._fd

    def text(self) -> str:
        """Return its first line, printable, without its name."""
        untrusted = os.pread(self._fd, MAX_WORDS, 0).partition(b"\0")[0]
        lines = untrusted.decode(errors="replace").splitlines() or [""]
        line = lines[0].removeprefix("swtpm: ")[:200]
        return "".join(c if c.isprintable() else "?" for c in line)

    def close(self) -> None:
        """Forget them."""
        os.close(self._fd)
