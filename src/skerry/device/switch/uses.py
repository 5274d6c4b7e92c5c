"""The maker of the uses of one switch, and the process that its members share.

The rules: a member has a pair of sockets that carries no descriptors, one end in its machine and
one in the switch's process; a cut shuts the pair down and empties it without asking that process;
when the process ends, every member is cut. It is started with the first member and ended with the
last. A node that starts anew ends it, and hands the members' sockets, which were kept, to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from skerry.device.helper import Helper, Program, Start
from skerry.device.switch.coalition import Coalition
from skerry.device.switch.engine import CONTROL, MAX_MEMBERS, MEMBER, OUT, REPORT
from skerry.device.switch.profile import LIMITS, PROFILE
from skerry.errors import LimitReached, NotFound, TransportError
from skerry.monitor.domain import Resource
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Bridge, Side

ENDED = "the switch has ended"
OUTLAW = "it sent the switch what is no Ethernet frame"


class Stream(Bridge, Protocol):
    """A two-way stream that carries no descriptors."""

    @property
    def twins(self) -> Mapping[Side, int]:
        """The descriptors that the cut works on; empty after it."""

    def is_whole(self) -> bool:
        """Say whether neither direction was shut down."""


class Streams(Protocol):
    """Makes them."""

    def mint(self) -> Stream:
        """Make one. Raises a `Denied`."""

    def adopt(self, twins: Mapping[Side, int]) -> Stream:
        """Make one anew of its twins, which it takes over."""

    def close(self) -> None:
        """End what makes them; they live on."""


class SwitchUse:
    """One member: a stream between its machine (`source`) and the switch's process (`sink`)."""

    def __init__(
        self, uses: SwitchUses, bridge: Stream, *, joined: bool = False, torn: bool = False
    ) -> None:
        """`torn`: nothing but its cut makes sense any more."""
        self.joined = joined
        self.dropped = 0
        self._torn = torn
        self._uses = uses
        self._bridge = bridge

    @property
    def ends(self) -> Mapping[Side, int]:
        """The descriptor for the machine; empty once handed over or cut."""
        return {side: end for side, end in self._bridge.ends.items() if side == "source"}

    @property
    def bells(self) -> Mapping[Side, int]:
        """None."""
        return {}

    @property
    def twins(self) -> Mapping[Side, int]:
        """The descriptors that the cut works on; empty after it."""
        return self._bridge.twins

    @property
    def uid(self) -> int:
        """The host uid of the switch's process."""
        return self._uses.uid

    def is_whole(self) -> bool:
        """Say whether the machine may still use it; without a process its frames wait for one."""
        return not self._torn and self._bridge.is_whole()

    async def open(self, channel: int) -> None:
        """Join, if the member may talk with all others. Raises `Denied` or `SupervisorError`."""
        await self._uses.join(self, channel)

    def handed_over(self) -> None:
        """Close our copies of the ends. Idempotent."""
        self._bridge.handed_over()

    def cut(self) -> int:
        """Shut the pair down, take what is queued in it, close it; return the bytes taken."""
        taken = self._bridge.cut()
        self._uses.left(self)
        return taken


class SwitchUses:
    """The maker of the uses of one switch; `meet` must come before the first."""

    coalition: Coalition

    def __init__(
        self,
        name: str,
        resource: Callable[[], Resource],
        start: Start,
        argv: Sequence[str],
        streams: Streams,
    ) -> None:
        """`argv` runs `engine.main`; `streams` makes the members' pairs."""
        self._name = name
        self._resource = resource
        self._start = start
        self._argv = argv
        self._streams = streams
        self._joining = asyncio.Lock()
        self._members: dict[SwitchUse, int] = {}
        self._helper: Helper | None = None
        self._control: socket.socket | None = None

    def meet(self, monitor: Monitor) -> None:
        """Get to know the monitor, whose table says who the members are."""
        self.coalition = Coalition(monitor, self._resource())

    @property
    def uid(self) -> int:
        """The host uid of the process, 0 where there is none."""
        return self._helper.uid if self._helper else 0

    def mint(
        self, one_way: bool, overflow: str = "block", *, size: int = 0, source: str = ""
    ) -> SwitchUse:
        """Make the pair of another member. Raises a `Denied`."""
        if len(self.coalition.members()) >= MAX_MEMBERS:
            raise LimitReached(f"the switch {self._name} has its {MAX_MEMBERS} members")
        return SwitchUse(self, self._streams.mint())

    def adopt(self, twins: Mapping[Side, int], helper: Helper | None, source: str) -> SwitchUse:
        """Take over a member that was handed over; `resume` gives it to a process.

        It can only be cut if one of its twins is missing, or if they are a TCP pair: that may have
        been left within a frame.
        """
        if helper is not None:  # no switch's process has a member's name
            helper.process.kill()
        both = dict(twins)
        for side in ("source", "sink"):
            both.setdefault(side, -1)
        torn = -1 in both.values() or not _is_unix(both["source"])
        found = max(both.values())
        both = {side: twin if twin >= 0 else os.dup(found) for side, twin in both.items()}
        return SwitchUse(self, self._streams.adopt(both), joined=True, torn=torn)

    async def join(self, use: SwitchUse, number: int) -> None:
        """Let a member that was minted join: see `SwitchUse.open`."""
        async with self._joining:
            with contextlib.suppress(NotFound):  # cut while it waited, which the binder sees
                await self.coalition.admit(number)
                await self._serve()
                if use.twins:
                    self._hand(use, number)
            self._end_if_empty()

    async def resume(self) -> None:
        """After a restart of the node: judge the members, and give them to another process.

        If none can be started they are cut. Raises nothing.
        """
        await self.coalition.judge()
        numbers = {channel.number: channel.bridge for channel in self.coalition.members()}
        if not numbers:
            return
        try:
            async with self._joining:
                await self._serve()
                for number, use in numbers.items():
                    if isinstance(use, SwitchUse) and use.twins:
                        self._hand(use, number)
        except Exception as error:  # whatever it is, nobody carries their frames
            self.coalition.lost(numbers, f"the switch could not be started anew: {error}")
        self._end_if_empty()

    async def _serve(self) -> None:
        """Have a process that runs. Raises `Denied`, `SupervisorError`."""
        if self._helper is not None and self._helper.process.exited.done():
            self._ended(self._helper)  # now, so that none of its members is taken for another's
        if self._helper is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        program = Program(self._argv, {CONTROL: theirs.fileno()}, PROFILE, LIMITS)
        try:
            # Under no channel's number: it is none's, and a node that starts anew ends it.
            helper = await self._start(-1 - secrets.randbelow(1 << 40), program)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._helper, self._control = helper, ours
        helper.process.exited.get_loop().add_reader(ours, self._hear, ours)
        helper.process.exited.add_done_callback(lambda _: self._ended(helper))

    def _hand(self, use: SwitchUse, number: int) -> None:
        """Give the process a member's socket. Raises `TransportError`."""
        assert self._control is not None  # it is served
        try:
            end = use.twins["sink"]
            socket.send_fds(self._control, [MEMBER.pack(number)], [end])
        except OSError as error:
            raise TransportError(
                f"the switch {self._name} takes no member: {error.strerror}",
                fix="its process is frozen or has ended; cut its members, then connect again",
            ) from None
        use.joined = True
        self._members[use] = number

    def _hear(self, control: socket.socket) -> None:
        """Take what the process says of its members."""
        try:
            untrusted = control.recv(2 * REPORT.size)
        except BlockingIOError:
            return
        except OSError:
            untrusted = b""
        if len(untrusted) != REPORT.size:
            asyncio.get_running_loop().remove_reader(control)
            return
        untrusted_number, untrusted_count = REPORT.unpack(untrusted)
        for use, number in list(self._members.items()):
            if number == untrusted_number:
                use.dropped = max(use.dropped, untrusted_count)
                if untrusted_count == OUT:
                    self.coalition.lost([number], OUTLAW)

    def _ended(self, helper: Helper) -> None:
        """The process has ended, and with it every member's link."""
        if self._helper is helper:
            self._let_go()
            self.coalition.lost(list(self._members.values()), ENDED)

    def left(self, use: SwitchUse) -> None:
        """Note that a member was cut."""
        self._members.pop(use, None)
        # Nothing lives on in a switch: whom a member exchanges with is asked of each pair.
        members = self.coalition.members()
        self._resource().written = frozenset(member.source.label for member in members)
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if not self._members and self._helper is not None:
            self._helper.process.kill()
            self._let_go()

    def _let_go(self) -> None:
        control, self._control = self._control, None
        helper, self._helper = self._helper, None
        if control is not None and helper is not None:
            helper.process.exited.get_loop().remove_reader(control)
            control.close()

    def close(self) -> None:
        """Let go of what makes the pairs. Uses that were minted live on."""
        self._streams.close()


def _is_unix(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        return sock.family == socket.AF_UNIX
