"""The client of the control socket; imports neither asyncio nor, but for its paths, the node.

The rule: it talks only to root, or to the user whose directory the socket lies in.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from skerry.control.operators import peer_uid
from skerry.errors import SkerryError, WireError
from skerry.node import paths
from skerry.wire.control import Call, Done, Failed, Input, Output, decode_reply, encode
from skerry.wire.frames import frame, receive

RESTART_S = 3.0
"""How long a caller waits for a service that was killed and is started again, in seconds."""


class Remote(SkerryError):
    """The service answered that the call failed; `reply` holds its words and exit code."""

    def __init__(self, reply: Failed) -> None:
        super().__init__(reply.message, fix=reply.fix)
        self.reply = reply
        self.exit_code = reply.exit_code


class NoService(SkerryError):
    """No node runs here, or it can't be reached."""


class NotRunning(NoService):
    """Nobody listens at the control socket."""


CHUNK = 60_000
"""Bytes of a file that one `Input` carries."""


class Client:
    """One call to the service."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises `NoService`."""
        self.left = False
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _connect(self.sock, path)
            _require_owner(self.sock, path)
        except NoService:
            self.sock.close()
            raise
        except PermissionError:
            self.sock.close()
            raise NoService(
                f"{path} is not open to you", fix="ask its owner to name you in [operators]"
            ) from None
        except OSError:
            self.sock.close()
            if is_supervised():
                raise NotRunning(
                    "the service does not answer: it is being started or ended",
                    fix="try again in a moment",
                ) from None
            raise NotRunning(
                "no system is running here", fix="start one with `skerry up SYSTEM --detach`"
            ) from None

    def send(self, message: Call | Input) -> None:
        """Send one message. Raises `WireError` if the service is gone.

        A service that refused the call unread has said why; then `result` raises it.
        """
        try:
            self.sock.sendall(frame(encode(message)))
        except OSError as error:
            if not isinstance(message, Input):
                return
            raise WireError(f"the service closed the connection: {error.strerror}") from None

    def upload(self, content: bytes) -> None:
        """Send a file after the call, and its end.

        A service that refused before it had all of it has said why; then `result` raises it.
        """
        with contextlib.suppress(WireError):
            for start in range(0, len(content), CHUNK):
                self.send(Input(content[start : start + CHUNK]))
            self.send(Input(b""))

    def leave(self) -> None:
        """Close from another thread: `result` raises `WireError` and `left` says it was us."""
        self.left = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def result(self, output: Callable[[Output], None] | None = None) -> object:
        """Wait for the call's end and return its result; raises `Remote`, `WireError`."""
        while True:
            try:
                untrusted = receive(self.sock)
            except OSError as error:
                raise WireError(f"the service closed the connection: {error.strerror}") from None
            if not untrusted:
                raise WireError(
                    "the service closed the connection before it answered",
                    fix="`skerry ps` shows whether it still runs",
                )
            reply = decode_reply(untrusted)
            if isinstance(reply, Done):
                return reply.result
            if isinstance(reply, Failed):
                raise Remote(reply)
            if output is not None:
                output(reply)


def is_supervised() -> bool:
    """Say whether a supervisor holds its lock: it starts the service again if that is dead."""
    try:
        handle = os.open(paths.state_dir() / paths.LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _connect(sock: socket.socket, path: Path) -> None:
    """Connect. A socket that nobody listens at is that of a service which is started again."""
    until = time.monotonic() + RESTART_S
    while True:
        try:
            return sock.connect(str(path))
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _require_owner(sock: socket.socket, path: Path) -> None:
    """Raise `NoService` if it is neither root nor the directory's owner who listens, `OSError`."""
    peer, owner = peer_uid(sock), path.parent.stat().st_uid
    if peer not in (0, owner):
        raise NoService(
            f"uid {peer} listens at {path}, which is in a directory of uid {owner}",
            fix="remove the socket, and find out who put it there",
        )


def call(path: Path, message: Call) -> object:
    """Make one call and return its result."""
    client = Client(path)
    try:
        client.send(message)
        return client.result()
    finally:
        client.sock.close()
