"""Law 1: two jailed programs in an attacker's hands can't pass a descriptor over their stream.

Stand-ins for two compromised QEMUs, each in QEMU's jail under QEMU's filter, hold the two ends of
an allowed stream. The receiver first tries to switch the passing of descriptors on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from skerry.channel.stream import StreamBridges
from skerry.channel.transport import unix_pair_holds
from skerry.jail.identity import IdentityPool, open_pool
from tests.support.stand_ins import StandIn
from tests.support.supervisor import running_supervisor

RECEIVER = """
import socket
end = socket.socket(fileno=3)
end.settimeout(10)
try:
    end.setsockopt(socket.SOL_SOCKET, 83, 1)
    print("option on", flush=True)
except OSError as error:
    print("option", error.strerror, flush=True)
data, got, _, _ = socket.recv_fds(end, 1, 4)
print("got", data, len(got), flush=True)
"""

SENDER = """
import os, socket
end = socket.socket(fileno=3)
memory = os.memfd_create("smuggled")
try:
    socket.send_fds(end, [b"m"], [memory])
except OSError as error:
    print("refused", error.strerror, flush=True)
    end.send(b"p")
"""


@pytest.fixture(scope="module")
def identities() -> Iterator[IdentityPool | None]:
    """Host uids for the stand-ins, where this host has them."""
    pool = open_pool()
    yield pool
    if pool is not None:
        pool.close()


def _attack(
    ends: tuple[int, int], pool: IdentityPool | None, off: frozenset[str] = frozenset()
) -> tuple[str, str]:
    """Run both stand-ins; return what the option gave, and what the receiver got."""

    async def run() -> tuple[str, str]:
        async with running_supervisor() as client:
            receiver, sender = StandIn(client, pool, off), StandIn(client, pool, off)
            await receiver.start(RECEIVER, ends[1])
            option = await receiver.line()
            await sender.start(SENDER, ends[0])
            got = await receiver.line()
            await receiver.close()
            await sender.close()
            return option, got

    return asyncio.run(run())


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_no_descriptor_passes_a_stream(transport: str, identities: IdentityPool | None) -> None:
    """Neither transport carries a memfd between two jails, whatever both sides try."""
    if transport == "unix" and not unix_pair_holds():
        transport = "tcp"  # what this host's streams are
    bridges = StreamBridges("unix" if transport == "unix" else "tcp")
    bridge = bridges.mint()
    try:
        option, got = _attack((bridge.ends["source"], bridge.ends["sink"]), identities)
        assert option == "option Operation not permitted"
        assert got.endswith(" 0")
        assert got.startswith("got b")
    finally:
        bridge.cut()
        bridges.close()


def test_control_a_plain_pair_carries_a_descriptor(identities: IdentityPool | None) -> None:
    """Over a plain Unix pair the same two programs in the same jails do pass a memfd."""
    one, other = socket.socketpair()
    with one, other:
        _, got = _attack((one.fileno(), other.fileno()), identities)
    assert got == "got b'm' 1"


def test_control_without_the_filter_the_option_comes_back(
    identities: IdentityPool | None,
) -> None:
    """Without the filter the receiver switches passing on again, and the memfd arrives."""
    if not unix_pair_holds():
        assert StreamBridges().transport == "tcp"
        return
    bridge = StreamBridges("unix").mint()
    try:
        ends = bridge.ends["source"], bridge.ends["sink"]
        option, got = _attack(ends, identities, frozenset({"seccomp"}))
        assert (option, got) == ("option on", "got b'm' 1")
    finally:
        bridge.cut()
