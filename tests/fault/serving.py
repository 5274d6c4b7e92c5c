"""A resource of the storm: uses with a helper that outlives the nodes, as a storage daemon does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping

from skerry.device.helper import Helper
from skerry.machine.simulator.process import Faults, SimulatedProcess
from skerry.monitor.protocols import Side
from skerry.node.relays import relay_name
from tests.fault.outside import Handle, Outside


class HelperProcess(SimulatedProcess):
    """A helper that holds one end; it ends like a process, and its end with it."""

    def __init__(self, held: socket.socket) -> None:
        super().__init__(Faults())
        self.held = held

    def end(self, status: int, reason: str) -> None:
        """End it, and close what it held."""
        super().end(status, reason)
        self.held.close()


class KeptUse:
    """One use: a pair of sockets, one end for the machine, the other for the helper."""

    uid = 0
    bells: Mapping[Side, int] = {}

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self._near, self._far = socket.socketpair()
        self._twin: socket.socket | None = self._far.dup()
        self._helper: Handle | None = None
        self.ends: dict[Side, int] = {"source": self._far.fileno()}

    @classmethod
    def adopt(cls, twin: int, helper: Handle | None) -> KeptUse:
        """Take one over."""
        use = cls.__new__(cls)
        use.ends, use._twin, use._helper = {}, socket.socket(fileno=twin), helper
        use._near = use._far = use._twin
        return use

    @property
    def twins(self) -> Mapping[Side, int]:
        """A duplicate of the machine's end."""
        return {"source": self._twin.fileno()} if self._twin else {}

    def is_whole(self) -> bool:
        """Say whether the helper runs."""
        return self._helper is not None and self._helper.process.exit is None

    async def open(self, channel: int) -> None:
        """Start the helper."""
        await asyncio.sleep(0)
        process = HelperProcess(self._near.dup())
        handle = Handle(process)
        self._outside.processes[relay_name(channel)] = process
        self._outside.helpers[channel] = process
        self._outside.happened()
        await asyncio.sleep(0)
        if self._twin is None:
            handle.kill()
            return
        self._helper = handle
        self._near.close()

    def handed_over(self) -> None:
        """Close our copy of the machine's end."""
        self.ends.clear()
        if self._far is not self._twin:
            self._far.close()

    def cut(self) -> int:
        """End the helper and shut the socket down."""
        self.handed_over()
        if self._near is not self._twin:
            self._near.close()
        helper, self._helper = self._helper, None
        twin, self._twin = self._twin, None
        if helper is not None:
            helper.kill()
        if twin is not None:
            with contextlib.suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)
            twin.close()
        return 0


class KeptUses:
    """The maker of a resource's uses."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def mint(
        self, one_way: bool, overflow: str = "block", *, size: int = 0, source: str = ""
    ) -> KeptUse:
        """Make one."""
        return KeptUse(self._outside)

    def adopt(self, twins: Mapping[Side, int], helper: Helper | None, source: str) -> KeptUse:
        """Take one over with its helper."""
        process = helper.process if helper is not None else None
        assert process is None or isinstance(process, Handle)
        return KeptUse.adopt(twins["source"], process)

    def close(self) -> None:
        """Do nothing."""
