"""A machine in memory with real descriptors: `monitor.protocols.Machine` without QEMU.

The rule: it keeps the protocol to the letter (a machine is prepared once, an attached end is
duplicated, a machine that ended holds nothing), so that the core, the command line and the laws
are tested by the thousand. A node that is killed loses only this object, and the process goes on.
It confines nothing: it is for tests and for trying a policy.
"""

from __future__ import annotations

import asyncio
import os

from skerry.errors import MachineError, StateError
from skerry.machine.console import RESTARTED, Console
from skerry.machine.control import ControlPort
from skerry.machine.simulator.guest import SimulatedAgent, SimulatedGuest
from skerry.machine.simulator.process import Faults, SimulatedProcess, Step
from skerry.monitor.protocols import Exit, Kind
from skerry.wire.memory import Identity


class SimulatedMachine:
    """Implements `monitor.protocols.Machine`. Make it inside a running event loop.

    `guest`, `agent`, `console` and `control` exist once `prepare` has returned. `faults` may be
    changed at any time; a guest is frozen by `guest.freeze()`.

    Made with the `process` of another it takes that over, and the other acts no more (only
    `die`, which is the guest's own doing); then `adopt` must follow. The other may be of an
    event loop that was closed.
    """

    guest: SimulatedGuest
    agent: SimulatedAgent
    console: Console
    control: ControlPort

    def __init__(
        self, name: str, faults: Faults | None = None, process: SimulatedProcess | None = None
    ) -> None:
        self.name = name
        self._exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._ready = False
        self.process = process or SimulatedProcess(faults or Faults())
        if self.process.started:
            self._connect(RESTARTED)
        self.process.hand_over(self)

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
        ports = self.process.ports if self._owns else {}
        return {channel: self.guest.end_of(port).descriptor for channel, port in ports.items()}

    @property
    def faults(self) -> Faults:
        """What goes wrong, for this object and those after it."""
        return self.process.faults

    @property
    def running(self) -> bool:
        """Whether the processors run."""
        return self._owns and self.process.started and self.guest.running

    @property
    def attached(self) -> frozenset[int]:
        """The channels of which the machine holds a descriptor."""
        return frozenset(self.descriptors)

    async def prepare(self) -> None:
        """Make the guest, its processors stopped. Raises `MachineError`, `StateError`."""
        if self.process.started or self._exited.done():
            raise StateError(f"{self.name}: a machine is prepared once, before its end")
        self.process.start()
        self._connect()
        self._ready = True
        try:
            self._step("prepare")
        except MachineError:
            self.process.end(1, "it did not start")
            raise

    def release(self) -> None:
        """Leave the machine as a killed node does: no call of this object acts any more."""
        if not self._owns:
            return
        self.process.owner = None
        if self.process.started:
            self.console.close()
            self.agent.close()
            self.control.close()

    def heir(self) -> SimulatedMachine:
        """Return the next node's object for the same process; `adopt` must follow."""
        return SimulatedMachine(self.name, process=self.process)

    async def adopt(self) -> None:
        """Take up the control of a process that was taken over. Raises `MachineError`."""
        self._ready = self.process.started
        self._step("adopt")

    def expect(self, channel: int, memory: Identity) -> None:
        """Do nothing: it has no memories."""

    async def verify(self) -> None:
        """Do nothing, for the same reason."""

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
        if self._ready and not self._exited.done():
            try:
                self._step("shutdown")
                await asyncio.wait_for(self.guest.awake.wait(), deadline_s)
                self.process.end(0, "the guest switched off")
            except (MachineError, TimeoutError):
                pass
        self.kill()

    def kill(self) -> None:
        """End the machine at once. Idempotent, in any state."""
        if self._owns:
            started = self.process.started
            self.process.end(-9, "killed" if started else "ended before it was started")

    def die(self, status: int = 1, reason: str = "it died") -> None:
        """End by itself, as a machine that crashes does; for tests."""
        self.process.end(status, reason)

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Take a duplicate of a channel's first end, and show it to the guest as `port`.

        Raises `MachineError`; then the machine holds nothing of it.
        """
        if kind == "tpm":
            raise MachineError("a simulated machine has no TPM")
        self._step("attach")
        if kind == "memory":
            raise MachineError("a simulated machine has no shared memory")
        if channel in self.process.ports or port in self.guest.ports():
            raise StateError(f"{self.name}: channel {channel} or port {port} is attached already")
        try:
            descriptor = os.dup(ends[0])
        except OSError as error:
            raise MachineError(f"{self.name}: cannot take the channel: {error.strerror}") from None
        self.guest.plug(port, descriptor)
        self.process.ports[channel] = port

    async def detach(self, channel: int) -> None:
        """Take the port away and close its descriptor. Idempotent, also after the end."""
        if not self._owns or channel not in self.process.ports:
            return
        self._step("detach")
        self.guest.unplug(self.process.ports.pop(channel))

    def ended(self, end: Exit) -> None:
        """Take note of the process's end (the process's side)."""
        if self.process.started:
            self.console.close()
            self.control.close()
        self._exited.set_result(end)

    @property
    def _owns(self) -> bool:
        return self.process.owner is self

    def _connect(self, note: bytes = b"") -> None:
        self.guest = self.process.guest
        self.console = Console(self.process.console(), note)
        self.control = ControlPort(self.process.control())
        self.agent = SimulatedAgent(self.guest, self._exited)

    def _step(self, step: Step) -> None:
        if self._owns and step in self.faults.die:
            self.process.end(1, f"it died at {step}")
        if not self._owns or not self._ready or self._exited.done():
            raise MachineError(f"{self.name}: the machine is not there for {step}")
        if step in self.faults.fail:
            raise MachineError(f"{self.name}: {step} failed")
