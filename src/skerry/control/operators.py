"""Who may call: Unix credentials of the peer, mapped to a label.

The credentials come from the kernel (`SO_PEERCRED`), never from the message. A uid that the map
does not name is refused before its message is read.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping

from skerry.errors import Denied
from skerry.label import Label

_UCRED = struct.Struct("3i")


def peer_uid(sock: socket.socket) -> int:
    """Return the uid of the process at the other end of this Unix socket."""
    return _peer(sock)[1]


def peer_pid(sock: socket.socket) -> int:
    """Return the pid of the process that listens or connected at the other end."""
    return _peer(sock)[0]


def _peer(sock: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


class Operators:
    """The map from uid to label, fixed when the node starts; a load may rename its labels."""

    def __init__(self, labels: Callable[[], Mapping[int, Label]]) -> None:
        self._labels = labels

    @property
    def uids(self) -> frozenset[int]:
        """The uids that may call at all."""
        return frozenset(self._labels())

    def label(self, uid: int) -> Label:
        """Return the operator's label. Raises `Denied` for a uid that is not in the map."""
        try:
            return self._labels()[uid]
        except KeyError:
            raise Denied(
                f"uid {uid} is not an operator of this node",
                fix="the system file's [operators] names them",
                code="OPERATOR-UNKNOWN",
            ) from None
