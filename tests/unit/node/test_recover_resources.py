"""A domain's use of a resource after a restart: it goes on with its helper, or is cut."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from skerry.channel.stream import StreamBridges
from skerry.machine.qemu.launch import KEPT
from skerry.monitor.domain import Resource
from skerry.node import recover
from skerry.node.bridges import AllBridges
from skerry.node.journal import NodeJournal, twin_name
from skerry.node.recover import Recovery, end_unknown
from skerry.node.relays import relay_name
from skerry.node.resources import Resources
from skerry.node.standing import ChannelEntry, DomainEntry, Footprint, Standing
from skerry.supervisor.client import Inherited, Process
from skerry.system.model import ResourceSpec
from tests.support.left import Held, Left, Store, incarnation
from tests.support.monitor import World, label
from tests.support.resources import ToyUses

NAME = incarnation("awake")


class Scene:
    """One machine of an earlier node that used a disk; `channel` 1 is that use."""

    def __init__(self) -> None:
        self.uses = ToyUses()
        self.given, self.twin = socket.socketpair()
        self.helper = Held()
        self.world: World
        self.recovery: Recovery

    async def begin(self, folder: Path, *, helper: bool = True, known: bool = True) -> None:
        """Restart: without its `helper`, or with a system that has the resource no more."""
        standing = Standing()
        standing.domains[NAME] = DomainEntry("awake", label("awake"), 0.0, Footprint(NAME, "toy"))
        standing.channels[1] = ChannelEntry(
            1, "disk", NAME, "resource:vault", "vault", False, 1, 1, 0.0
        )
        kept = {f"{NAME}.{part}": os.dup(0) for part in KEPT}
        kept[twin_name(1, "source")] = os.dup(self.twin.fileno())
        processes: dict[str, Process] = {NAME: Held()}
        if helper:
            processes[relay_name(1)] = self.helper
        inherited = Inherited(processes, kept)
        await end_unknown(inherited, standing)
        assert not self.helper.killed, "it serves what stands"
        journal = await NodeJournal.open(folder / "journal.log", Store(), standing)
        self.world = World(journal)
        self.world.allow(("awake", "vault"))
        resources = Resources({"disk": lambda spec, resource: self.uses})
        if known:
            spec = ResourceSpec("vault", "disk", "vault")
            found = Resource("vault", label("vault"), "disk", self.uses)
            resources._made["vault"] = spec, found, self.uses
            self.world.monitor.resources["vault"] = found
        machine = Left(asyncio.Event())
        machine.thawed.set()
        machine.attached = frozenset({1})

        def heir(entry: DomainEntry, _: Process, ours: Mapping[str, int]) -> Left:
            for descriptor in ours.values():
                os.close(descriptor)
            return machine

        self.recovery = Recovery(
            self.world.monitor,
            journal,
            inherited,
            heir,
            lambda _: None,
            lambda number, process: None,
            AllBridges(StreamBridges(), resources).adopt,
        )
        await self.recovery.run(lambda: self.world.decider)
        await self.recovery.adopt()

    def ended(self) -> bool:
        """Say whether the guest's end is dead."""
        self.given.setblocking(False)
        try:
            over = self.given.recv(1) == b""
        except BlockingIOError:
            return False
        self.given.close()
        return over


def test_a_use_goes_on_with_its_helper_and_is_cut_as_ever(tmp_path: Path) -> None:
    """The table has it, with the resource as its sink; a cut, then, ends it."""

    async def main() -> None:
        scene = Scene()
        await scene.begin(tmp_path)
        (channel,) = scene.world.monitor.channels
        assert isinstance(channel.sink, Resource)
        assert (channel.number, channel.sink.name) == (1, "vault")
        assert not scene.ended()
        scene.world.monitor.cut(1)
        await scene.world.monitor.settle()
        scene.twin.close()
        assert scene.ended()

    asyncio.run(main())


def test_a_use_is_known_by_its_domain_after_a_restart_as_before_it(tmp_path: Path) -> None:
    """`disk list` names, and a release is refused with, what `skerry stop` takes."""

    async def main() -> None:
        scene = Scene()
        await scene.begin(tmp_path)
        assert [source for _, source, _ in scene.uses.minted] == ["awake"]
        scene.world.monitor.cut(1)
        await scene.world.monitor.settle()
        scene.twin.close()
        scene.given.close()

    asyncio.run(main())


@pytest.mark.parametrize(("helper", "known"), [(False, True), (True, False)])
def test_a_use_without_its_helper_or_its_resource_is_cut_with_its_reason(
    tmp_path: Path, helper: bool, known: bool
) -> None:
    """What served a resource that is gone is ended."""

    async def main() -> None:
        scene = Scene()
        await scene.begin(tmp_path, helper=helper, known=known)
        assert not list(scene.world.monitor.channels)
        reason = recover.GONE if not known else recover.UNBRIDGED
        assert scene.recovery.found.cut == {1: reason}
        assert scene.helper.killed is (helper and not known)
        scene.twin.close()
        assert scene.ended()
        machine = cast(Left, scene.world.monitor.domain("awake").machine)
        assert "detach" in machine.calls

    asyncio.run(main())


def test_what_was_being_bound_is_taken_apart_as_far_as_it_got(tmp_path: Path) -> None:
    """A twin and a helper that no record names: the one is shut down, the other ended."""

    async def main() -> None:
        given, twin = socket.socketpair()
        kept = {twin_name(7, "source"): os.dup(twin.fileno())}
        helper = Held()
        journal = await NodeJournal.open(tmp_path / "journal.log", Store(), Standing())
        world = World(journal)
        recovery = Recovery(
            world.monitor,
            journal,
            Inherited({relay_name(7): helper}, kept),
            NotImplemented,
            lambda _: None,
            lambda number, process: None,
            AllBridges(StreamBridges(), Resources({})).adopt,
        )
        found = await recovery.run(lambda: world.decider)
        assert found.undone == ["channel 7"]
        assert helper.killed
        assert given.recv(1) == b"", "shut down, although the test still holds the other end"
        twin.close()
        given.close()

    asyncio.run(main())


def test_a_half_bound_use_with_a_pipe_is_taken_apart(tmp_path: Path) -> None:
    """A connection and a pipe are a disk's, and no stream: shut down and closed."""

    async def main() -> None:
        given, twin = socket.socketpair()
        read, write = os.pipe()
        helper = Held()
        kept = {twin_name(7, "source"): os.dup(twin.fileno()), twin_name(7, "sink"): read}
        journal = await NodeJournal.open(tmp_path / "journal.log", Store(), Standing())
        world = World(journal)
        recovery = Recovery(
            world.monitor,
            journal,
            Inherited({relay_name(7): helper}, kept),
            NotImplemented,
            lambda _: None,
            lambda number, process: None,
            AllBridges(StreamBridges(), Resources({})).adopt,
        )
        found = await recovery.run(lambda: world.decider)
        assert found.undone == ["channel 7"]
        assert helper.killed
        assert given.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")
        os.close(write)
        twin.close()
        given.close()
        with pytest.raises(OSError):
            os.fstat(read)

    asyncio.run(main())
