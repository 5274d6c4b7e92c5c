"""A disk that domains with a wall between them may share: who reads what another writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from skerry.label import Label
from skerry.monitor.domain import Resource
from skerry.monitor.protocols import Bridges
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import Source, make_policy
from tests.support.monitor import World, play
from tests.support.resources import ToyUses

POLICY = """
[policy]
name = "tests.sharing"
version = "1.0"
bootstrap = "system"

[simple-type-enforcement]
types = ["common"]

[chinese-wall]
types = ["bank-a", "bank-b"]

[[chinese-wall.conflicts]]
name = "banks"
types = ["bank-a", "bank-b"]
history = true

[labels.system]
ste = ["common"]

[labels.auditor]
ste = ["common"]

[labels.courier]
ste = ["common"]

[labels.alice]
ste = ["common"]
cw = ["bank-a"]

[labels.bob]
ste = ["common"]
cw = ["bank-b"]

[resources.store]
ste = "common"
"""


class Store:
    """A disk `store` and the domains of a policy with a wall between two banks."""

    def __init__(self, world: World, manager: PolicyManager) -> None:
        self.world, self.monitor, self.manager = world, world.monitor, manager
        self.monitor.mediator.decider = manager
        self.uses = ToyUses()
        self.serve(self.uses)

    def serve(self, uses: Bridges) -> None:
        """Have a maker serve it from now on; nobody has written it."""
        label = self.manager.stack.label("store", "resource")
        self.resource = Resource("store", label, "disk", uses)
        self.monitor.resources["store"] = self.resource

    def label(self, name: str) -> Label:
        """Return a domain's label."""
        return self.manager.stack.label(name, "domain")

    async def run(self, *names: str) -> None:
        """Start domains named like their labels; two banks run only one after the other."""
        for name in names:
            operator = self.label("system")
            await self.monitor.start(operator, name, self.label(name), self.world.maker(name))

    async def bind(self, name: str, mode: str) -> int:
        """Use the disk, `mode` `ro` or `rw`."""
        bound = await self.monitor.bind(name, "store", port=mode, one_way=mode == "ro")
        return bound.number

    async def may_exchange(self, one: str, other: str) -> bool:
        """Ask the wall."""
        return (await self.manager.admit_bind(self.label(one), self.label(other))).allowed


def sharing(scene: Callable[[Store], Awaitable[None]]) -> None:
    """Play a scene under the policy."""
    stack = make_policy([Source("policy.toml", POLICY.encode())]).stack

    async def begin(world: World) -> None:
        await scene(Store(world, PolicyManager(stack, MemoryHistory())))

    play(begin)
