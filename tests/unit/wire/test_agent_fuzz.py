"""The real host's side of the agent, fuzzed from the guest's end of its socket."""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.errors import MachineError, WireError
from skerry.machine import agent
from tests.unit.wire.test_agent_host import greet, pair, word

ID = b"ID"
"""Stands for the ID of the command that runs."""

PIECES = st.lists(
    st.binary(max_size=300)
    | st.sampled_from(
        [
            b"out ID YQ==\n",
            b"err ID " + b"YWJj" * 1000 + b"\n",
            b"out ID !!!!\n",
            b"out ID\n",
            b"exit ID 7\n",
            b"exit ID 256\n",
            b"exit 00000000 0\n",
            b"out 00000000 YQ==\n",
            b"hello 1 0123456789012345\n",
            b"hello 2 0123456789012345\n",
            b"x" * 5000,
            b"\n",
            b"out ID Y",
        ]
    ),
    max_size=20,
)


@settings(max_examples=150)
@given(PIECES)
def test_whatever_a_guest_sends_its_command_ends_or_fails_and_others_run(
    pieces: list[bytes],
) -> None:
    """No other error comes out, little is kept, and the next guest is answered meanwhile."""

    async def scene() -> None:
        async with pair() as (one, guest), pair() as (other, quiet):
            await greet(one, guest)
            await greet(other, quiet)
            taken = 0

            def take(_stream: str, data: bytes) -> None:
                nonlocal taken
                taken += len(data)

            running = asyncio.ensure_future(one.run(["a"], output=take))
            number = (await word(guest, "run")).encode()
            sent = b"".join(pieces).replace(ID, number)
            with contextlib.suppress(ConnectionError):
                guest[1].write(sent + b"\nexit " + number + b" 0\n")
                await guest[1].drain()
            beside = asyncio.ensure_future(other.run(["b"], output=take))
            quiet[1].write(f"exit {await word(quiet, 'run')} 5\n".encode())
            assert await beside == 5
            with contextlib.suppress(MachineError, WireError):
                assert 0 <= await running <= 255
            assert taken <= len(sent)
            assert one._undelivered == 0
            assert one._parser is not None
            assert len(one._parser._untrusted_rest) <= agent.READ_MAX

    asyncio.run(asyncio.wait_for(scene(), 20))
