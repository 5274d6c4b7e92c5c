"""The node's own domains: the policy manager's and the audit replica's, where they live in any.

The rules: they start as themselves, by the core's fixed rule, and before every other domain; a node
that does not get them at its first start does not start. Later the manager is started again when
it is lost, and what needs it is denied meanwhile; the replica is fed by nobody who waits for it.
Their port is made anew with each node, and never stands in the table of channels: one end of it is
the node itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from skerry.audit.guest import PORT as TRAIL_PORT
from skerry.channel.stream import StreamBridges
from skerry.errors import Denied, MachineError, NotFound, SkerryError, StateError
from skerry.label import Label
from skerry.monitor.domain import ALIVE, Domain, State
from skerry.monitor.mediate import AUDIT, MANAGER
from skerry.node import paths
from skerry.node.node import Node, Report
from skerry.node.recover import JUDGE_S
from skerry.node.replica import HELPER, Replication, Trail
from skerry.policy.client import Process, RemoteManager
from skerry.policy.guest import PORT as MANAGER_PORT
from skerry.policy.history import FileHistory
from skerry.policy.link import MAKE_S
from skerry.policy.source import Policy
from skerry.system.model import AUDIT_DOMAIN, MANAGER_DOMAIN, DomainSpec

BOOT_S = 120.0
"""How long the guest of one of the node's own domains may take to answer for the first time."""

END_S = 15.0
"""How long one that was killed may take to be gone before the next is started."""

PATIENCE_S = END_S + BOOT_S + MAKE_S
"""How long what an earlier node left may wait to be judged where the manager that it left does not
serve: as long as another one may take, from the end of that one until it has the policy."""

ANSWER_S = 5.0
"""How long a manager in a domain may take to answer a question, in seconds."""

NUMBER = 10**9
"""What its machine calls the port of such a domain: no channel's number, so a node that adopts the
machine has it taken away, as it does with all that is in no table. QEMU takes none above 2**30."""

Adopt = Callable[[str], Awaitable[bool]]
"""Takes up the machine of this name that an earlier node left; false if there is none that goes on.
"""


class OwnDomain:
    """One of the node's own domains. `left`: it lives on without this node."""

    def __init__(
        self, node: Node, spec: DomainSpec, label: Label, port: Path, adopt: Adopt
    ) -> None:
        self.left = False
        self._node, self._spec, self._label = node, spec, label
        self._port = port.name
        self._adopt: Adopt | None = adopt

    async def stand(self) -> Domain:
        """Return it, alive, and without its port: adopted, or started anew after its end.

        Raises `SkerryError`.
        """
        adopt, self._adopt = self._adopt, None
        monitor, name = self._node.monitor, self._spec.name
        if adopt is not None and await adopt(name):
            return monitor.domain(name)
        if name in monitor.domains:
            self.kill()
            try:
                await asyncio.wait_for(monitor.domain(name).gone.wait(), END_S)
            except TimeoutError:
                raise MachineError(f"domain {name} does not end") from None
        return await self._node.start_own(self._spec, self._label)

    async def give(self, domain: Domain, end: int) -> None:
        """Give it the other end of its port, let it run, and wait until its guest answers.

        Raises `SkerryError`.
        """
        machine = domain.require(ALIVE, "give it its port")
        await machine.attach(NUMBER, "stream", self._port, end)
        if domain.state is State.PAUSED:
            await self._node.monitor.resume(self._label, domain.name)
        await self._node.answered(domain.name, BOOT_S)

    def kill(self) -> None:
        """End it at once, if it has not ended, unless it is to live on."""
        if not self.left:
            with contextlib.suppress(StateError, NotFound):
                self._node.monitor.kill(self._spec.name)

    async def gone(self) -> None:
        """Wait until it has ended, if it was ever there and does not live on."""
        domain = self._node.monitor.domains.get(self._spec.name)
        if domain is not None and not self.left:
            await domain.gone.wait()


class Services:
    """The node's own domains, none to two of them. `join` comes before `rise`."""

    def __init__(
        self, domains: Mapping[str, DomainSpec], streams: StreamBridges, trail: Trail
    ) -> None:
        self._specs = domains
        self._streams = streams
        self._trail = trail
        self._manager: RemoteManager | None = None
        self._own: dict[str, OwnDomain] = {}
        self._replication: Replication | None = None

    def manager(self, policy: Policy, generation: int) -> RemoteManager | None:
        """Return the manager in its domain, which begins with `rise`; None if it has none."""
        if MANAGER_DOMAIN in self._specs:
            store = FileHistory(paths.history_file())
            self._manager = RemoteManager(
                self._start_manager, policy, store, self._trail.note, generation, ANSWER_S
            )
            self._manager.held = "what stands is judged first"
        return self._manager

    @property
    def decides(self) -> bool:
        """Whether the policy manager lives in a domain."""
        return self._manager is not None

    @property
    def patience_s(self) -> float:
        """How long what stands may wait for who judges it, in seconds."""
        return PATIENCE_S if self.decides else JUDGE_S

    def join(self, node: Node, adopt: Adopt) -> None:
        """Learn on which node they stand, and who takes up what an earlier one left."""
        labels = {MANAGER_DOMAIN: (MANAGER, MANAGER_PORT), AUDIT_DOMAIN: (AUDIT, TRAIL_PORT)}
        for name, spec in self._specs.items():
            self._own[name] = OwnDomain(node, spec, *labels[name], adopt)
        if AUDIT_DOMAIN in self._own:
            self._replication = Replication(node, self._own[AUDIT_DOMAIN], self._trail)
            node.helpers[HELPER] = self._replication

    async def rise(self, fresh: bool, report: Report) -> None:
        """Have both stand and serve; return once they do.

        Raises `Denied` where one of a fresh node's does not. On a node that goes on the replica is
        not waited for, and a manager that does not come is left to be tried again.
        """
        for name in self._own if fresh else ():
            report({"event": "starting", "domain": name})
        rising: list[Awaitable[None]] = []
        if self._replication is not None:
            rising.append(self._replication.begin(fresh))
        if self._manager is not None:
            rising.append(self._manager.begin() if fresh else self._manager.resume())
        done = await asyncio.gather(*rising, return_exceptions=True)
        for error in done:
            if isinstance(error, SkerryError):
                raise _unstarted(error) from error
            if error is not None:
                raise error

    def judged(self) -> None:
        """Let the manager answer what is new: what stands has been judged."""
        if self._manager is not None:
            self._manager.held = ""

    async def _start_manager(self) -> tuple[socket.socket, Process]:
        own = self._own[MANAGER_DOMAIN]
        domain = await own.stand()
        ours, theirs = self._streams.pair()
        with theirs:
            try:
                await own.give(domain, theirs.fileno())
            except BaseException:
                ours.close()
                own.kill()
                raise
        return ours, own

    def leave(self, over: bool) -> None:
        """Hear that the node ends: they end with it if all is `over`, and else live on."""
        for own in self._own.values():
            own.left = not over

    async def close(self) -> None:
        """Stop feeding the replica, end what does not live on, and wait for its end."""
        if self._replication is not None:
            await self._replication.close()
        for own in self._own.values():
            own.kill()
        for own in self._own.values():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(own.gone(), END_S)


def _unstarted(error: SkerryError) -> Denied:
    return Denied(
        f"one of the node's own domains does not start: {error.message}",
        fix=error.fix or "`skerry image build` makes their images; they need memory, as any domain",
        code="SERVICE-DOMAIN",
    )
