"""No descriptor comes to the node through a socket of which it only reads bytes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from skerry.channel.transport import passes_descriptor, unix_pair_holds
from skerry.device.disk.daemon import Control
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.sockets import SOCKETS
from skerry.wire import rights
from skerry.wire.rights import refuse_descriptors
from tests.unit.machine_qemu.test_adoption import Ended


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_a_socket_that_refuses_gets_bytes_and_no_descriptors(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """As far as the kernel can; what it sends itself goes out. The control gets both."""
    ours, theirs = pair
    assert passes_descriptor(theirs, ours), "the control"
    assert refuse_descriptors(ours) is unix_pair_holds()
    assert passes_descriptor(theirs, ours) is not unix_pair_holds()
    assert passes_descriptor(ours, theirs)
    theirs.send(b"bytes")
    assert ours.recv(10) == b"bytes"


def test_a_kernel_that_cannot_is_said_and_harms_nothing(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that it does not know leaves the socket as it was."""
    monkeypatch.setattr(rights, "SO_PASSRIGHTS", 9999)
    ours, theirs = pair
    assert not refuse_descriptors(ours)
    theirs.send(b"bytes")
    assert ours.recv(10) == b"bytes"


def test_no_end_that_the_node_has_of_a_qemu_takes_a_descriptor() -> None:
    """Of a machine that is taken over; QEMU's end of the control socket takes ours."""

    async def run() -> None:
        pairs = {kept: socket.socketpair() for kept in SOCKETS}
        ours = {f"i.{kept}": os.dup(near.fileno()) for kept, (near, _) in pairs.items()}
        machine = QemuMachine.heir("a", "a", "i", Ended(), ours)
        for kept, (near, far) in pairs.items():
            assert passes_descriptor(far, near) is not unix_pair_holds(), kept
        assert passes_descriptor(*pairs["qmp"])
        for near, far in pairs.values():
            near.close()
            far.close()
        await machine.exited

    asyncio.run(run())


def test_nor_that_of_a_storage_daemon(pair: tuple[socket.socket, socket.socket]) -> None:
    """The node's end of its control socket takes bytes alone."""
    ours, theirs = pair
    Control(ours)
    assert passes_descriptor(theirs, ours) is not unix_pair_holds()
