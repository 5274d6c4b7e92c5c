"""A machine in memory with real descriptors: `monitor.protocols.Machine` without QEMU.

The rule: it keeps the protocol to the letter (a machine is prepared once, an attached end is
duplicated, a machine that ended holds nothing), so that the core, the command line and the laws
are tested by the thousand. It confines nothing: it is for tests and for trying a policy.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Literal

from skerry.errors import MachineError, StateError
from skerry.machine.console import Console
from skerry.machine.simulator.guest import SimulatedAgent, SimulatedGuest
from skerry.monitor.protocols import Exit, Kind

Step = Literal["prepare", "resume", "pause", "shutdown", "attach", "detach"]


class Faults:
    """What a test lets go wrong: steps that fail, steps at which the machine dies."""

    def __init__(self) -> None:
        self.fail: set[Step] = set()
        self.die: set[Step] = set()


class SimulatedMachine:
    """Implements `monitor.protocols.Machine`. Make it inside a running event loop.

    `guest`, `agent` and `console` exist once `prepare` has returned. `faults` may be changed at
    any time; a guest is frozen by `guest.freeze()`.
    """

    guest: SimulatedGuest
    agent: SimulatedAgent
    console: Console

    def __init__(self, name: str, faults: Faults | None = None) -> None:
        self.name = name
        self.faults = faults or Faults()
        self._exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._ports: dict[int, str] = {}
        self._prepared = False

    @property
    def kind(self) -> str:
        """`simulator`."""
        return "simulator"

    @property
    def exited(self) -> asyncio.Future[Exit]:
        """Done when the machine has ended, whoever ended it."""
        return self._exited

    @property
    def descriptors(self) -> dict[int, int]:
        """The descriptor that the machine holds of each channel."""
        return {c: self.guest.socket(port).fileno() for c, port in self._ports.items()}

    async def prepare(self) -> None:
        """Make the guest, its processors stopped. Raises `MachineError`, `StateError`."""
        if self._prepared or self._exited.done():
            raise StateError(f"{self.name}: a machine is prepared once, before its end")
        near, far = socket.socketpair()
        self.guest = SimulatedGuest(far)
        self.console = Console(near)
        self.agent = SimulatedAgent(self.guest, self._exited)
        self._prepared = True
        try:
            self._step("prepare")
        except MachineError:
            self._end(1, "it did not start")
            raise

    def release(self) -> None:
        """Leave the machine as a killed node does: from now on no call of this object acts.

        Only `die`, which is the guest's own doing, still does.
        """
        raise NotImplementedError

    def heir(self) -> SimulatedMachine:
        """Return the next node's object for the same guest, ports and console; releases this one.

        `adopt` must follow. It may be made in another event loop than this one's.
        """
        raise NotImplementedError

    async def adopt(self) -> None:
        """Take up the control of a machine made by `heir`. Raises `MachineError`, then kill it."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        """Whether the processors run."""
        raise NotImplementedError

    @property
    def attached(self) -> frozenset[int]:
        """The channels of which the machine holds a descriptor."""
        return frozenset(self._ports)

    async def resume(self) -> None:
        """Let the guest run."""
        self._step("resume")
        self.guest.run(True)
        self.guest.print(f"{self.name} runs\r\n")

    async def pause(self) -> None:
        """Stop the guest; its ports stay."""
        self._step("pause")
        self.guest.run(False)

    async def shutdown(self, deadline_s: float) -> None:
        """End the guest; one that does not answer is killed when the deadline has passed."""
        if self._prepared and not self._exited.done():
            try:
                self._step("shutdown")
                await asyncio.wait_for(self.guest.awake.wait(), deadline_s)
                self._end(0, "the guest switched off")
            except (MachineError, TimeoutError):
                pass
        self.kill()

    def kill(self) -> None:
        """End the machine at once. Idempotent, in any state."""
        self._end(-9, "killed" if self._prepared else "ended before it was started")

    def die(self, status: int = 1, reason: str = "it died") -> None:
        """End by itself, as a machine that crashes does; for tests."""
        self._end(status, reason)

    async def attach(self, channel: int, kind: Kind, port: str, end: int) -> None:
        """Take a duplicate of a channel's end, and show it to the guest as `port`.

        Raises `MachineError`; then the machine holds nothing of it.
        """
        self._step("attach")
        if kind != "stream":
            raise MachineError(f"this machine has no channels of the kind {kind}")
        if channel in self._ports or port in self.guest.ports():
            raise StateError(f"{self.name}: channel {channel} or port {port} is attached already")
        try:
            sock = socket.socket(fileno=os.dup(end))
        except OSError as error:
            raise MachineError(f"{self.name}: cannot take the channel: {error.strerror}") from None
        self.guest.plug(port, sock)
        self._ports[channel] = port

    async def detach(self, channel: int) -> None:
        """Take the port away and close its descriptor. Idempotent, also after the end."""
        if channel not in self._ports:
            return
        self._step("detach")
        self.guest.unplug(self._ports.pop(channel))

    def _step(self, step: Step) -> None:
        if step in self.faults.die:
            self._end(1, f"it died at {step}")
        if not self._prepared or self._exited.done():
            raise MachineError(f"{self.name}: the machine is not there for {step}")
        if step in self.faults.fail:
            raise MachineError(f"{self.name}: {step} failed")

    def _end(self, status: int, reason: str) -> None:
        if self._exited.done():
            return
        self._ports.clear()
        if self._prepared:
            self.guest.end()
            self.console.close()
        self._exited.set_result(Exit(status, reason))
