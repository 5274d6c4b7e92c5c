"""The resources of a node: made from what the system file says, each with the maker of its uses.

The rule this module keeps: a resource whose definition is the same is the same object, so that its
uses go on; one that is defined otherwise is another, and the uses of the old one are cut first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from skerry.device.resource import Meets, Released, Uses
from skerry.errors import Denied, NotFound, StateError
from skerry.label import Label
from skerry.monitor.domain import Resource
from skerry.monitor.monitor import Monitor
from skerry.node.setup import Setup, carry
from skerry.node.written import Written, lives_on, writers
from skerry.system.model import ResourceKind, ResourceSpec
from skerry.xsm.stack import Stack

MakeUses = Callable[[ResourceSpec, Callable[[], Resource]], Uses]
"""Returns the maker of a resource's uses; the resource itself can be had once it is called for."""


class Resources:
    """Keeps `Monitor.resources` as a setup says; `stack` is the policy in force, whose labels the
    resources' are."""

    stack: Stack

    def __init__(
        self, makers: Mapping[ResourceKind, MakeUses], written: Written | None = None
    ) -> None:
        """`written` keeps who wrote what lives on; without it nothing is remembered."""
        self._makers = makers
        self._written = written
        self._made: dict[str, tuple[ResourceSpec, Resource, Uses]] = {}

    def follow(self, monitor: Monitor, setup: Setup) -> None:
        """Make what is new, drop what is gone or another one; the labels are the setup's.

        Raises `StateError` for a kind that nothing here serves.
        """
        wanted, self.stack = setup.system.resources, setup.stack
        for name, (spec, _, uses) in list(self._made.items()):
            if wanted.get(name) != spec:
                uses.close()
                del self._made[name]
        for name, spec in wanted.items():
            if name not in self._made:
                self._made[name] = spec, *self._make(spec, setup)
                uses = self._made[name][2]
                if isinstance(uses, Meets):
                    uses.meet(monitor)
            self._made[name][1].label = setup.labels[name]
        monitor.resources = {name: resource for name, (_, resource, _) in self._made.items()}
        for channel in monitor.channels:
            if isinstance(channel.sink, Resource) and channel.sink not in self._in_force:
                monitor.cut(channel.number, "the resource is another one now")

    @property
    def _in_force(self) -> set[Resource]:
        return {resource for _, resource, _ in self._made.values()}

    def _make(self, spec: ResourceSpec, setup: Setup) -> tuple[Resource, Uses]:
        if spec.kind not in self._makers:
            raise StateError(f"this node serves no {spec.kind}, which {spec.name} is")
        made: list[Resource] = []
        uses = self._makers[spec.kind](spec, lambda: made[0])
        label, before = setup.labels[spec.name], frozenset[Label]()
        if self._written is not None and lives_on(spec):
            before = self._written.of(lives_on(spec), setup.stack)
        made.append(Resource(spec.name, label, spec.kind, uses))
        made[0].written, made[0].keeps = before, not spec.discard
        return made[0], uses

    def made(self) -> Collection[Uses]:
        """Return the makers of the uses of all resources."""
        return [uses for _, _, uses in self._made.values()]

    async def save(self) -> None:
        """Return once all that may have been written is remembered. Raises a `Denied`."""
        if self._written is None:
            return
        try:
            for spec, resource, _ in list(self._made.values()):
                if lives_on(spec):
                    await self._written.keep(lives_on(spec), resource.written, self.stack)
        except OSError as error:
            raise Denied(
                f"who writes what cannot be written down: {error.strerror}",
                fix="make room on the disk",
                code="NOT-DURABLE",
            ) from None

    def writers(self, setup: Setup) -> dict[str, frozenset[Label]]:
        """Return who is known to have written each resource of a setup, as its policy calls them.

        Those that are about to write are among them.
        """
        found = writers(setup, self._written) if self._written else {}
        for name, (spec, resource, _) in self._made.items():
            if lives_on(spec) and setup.system.resources.get(name) == spec and resource.written:
                named = {carry(setup.stack, each, self.stack) or each for each in resource.written}
                found[name] = found.get(name, frozenset()) | named
        return found

    def uses_of(self, name: str) -> Uses | None:
        """Return the maker of a resource's uses, None if there is no such resource."""
        return self._made[name][2] if name in self._made else None

    async def release(self, name: str, *, gone: bool = False) -> str:
        """Release a disk, and forget who has written it; say what was done.

        `gone`: its image is gone for good. Raises `NotFound`, `StateError`, or a `Denied`; then
        nothing was forgotten.
        """
        self.disk(name)
        _, resource, uses = self._made[name]
        assert isinstance(uses, Released)
        done = await uses.release(gone=gone)
        resource.written = frozenset()
        await self.save()
        return done

    def disk(self, name: str) -> tuple[ResourceSpec, Resource, tuple[str, ...]]:
        """Return one of `disks`. Raises `NotFound`."""
        disks = self.disks()
        if name not in disks:
            known = ", ".join(disks) or "none"
            raise NotFound(f"there is no disk {name}", fix=f"the disks are: {known}")
        return disks[name]

    def disks(self) -> dict[str, tuple[ResourceSpec, Resource, tuple[str, ...]]]:
        """Return what can be released, each with the domains that use it."""
        return {
            name: (spec, resource, uses.users)
            for name, (spec, resource, uses) in self._made.items()
            if isinstance(uses, Released)
        }

    def close(self) -> None:
        """Let go of what the makers hold."""
        for _, _, uses in self._made.values():
            uses.close()
        self._made.clear()
