"""Tells whoever started the service that it is ready (systemd's `sd_notify`), if he asked."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send one state, such as `READY=1`, to `$NOTIFY_SOCKET`. Never blocks or raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
