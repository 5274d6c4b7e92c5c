"""Keeps descriptors out of a socket that only bytes are to come through.

The rule: what a process in an attacker's hands sends there stays its own. A descriptor in the queue
of a socket that nobody reads is held by the kernel, with all the memory behind it, whatever becomes
of the one who sent it.
"""

from __future__ import annotations

import socket

SO_PASSRIGHTS = 83
"""Socket option of Linux 6.16: may this socket receive descriptors. The same on all our hosts."""


def refuse_descriptors(sock: socket.socket) -> bool:
    """Have a Unix socket receive no descriptors; False where the kernel can't.

    Then they are closed when the bytes before them are read, or the socket is closed.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True
