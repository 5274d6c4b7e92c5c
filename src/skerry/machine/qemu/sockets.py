"""The sockets that every QEMU is started with: our ends by name, and the numbers of QEMU's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

from skerry.machine.qemu.command import SOCKET_FDS
from skerry.machine.qemu.launch import KEPT

SOCKETS = dict(zip(KEPT, (*SOCKET_FDS, 2), strict=True))
"""Our ends of a machine's sockets by name, and the numbers of QEMU's ends."""

Pairs = Mapping[int, tuple[socket.socket, socket.socket]]
"""Our end and QEMU's by QEMU's number."""


def socket_pairs(theirs: contextlib.ExitStack) -> Pairs:
    """Make a pair for each of QEMU's ends, which `theirs` closes. If it raises, none is left."""
    pairs = {}
    with contextlib.ExitStack() as ours:
        for fd in SOCKETS.values():
            near, far = pairs[fd] = socket.socketpair()
            ours.enter_context(near)
            theirs.enter_context(far)
        ours.pop_all()
    return pairs
