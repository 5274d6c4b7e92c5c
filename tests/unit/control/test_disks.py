"""The release of a running node's disks, as an operator calls it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest

from skerry.channel.transport import unix_waiting
from skerry.device.disk.header import BadImage
from skerry.device.disk.keys import Keys
from skerry.device.disk.uses import DiskUses, Means
from skerry.errors import NotFound, StaleGeneration, StateError
from skerry.label import Label
from skerry.monitor.domain import Resource
from skerry.wire import control as wire
from tests.unit.control.test_calls import Client, Host, play, ticks
from tests.unit.control.test_resources import LABELLED, SYSTEM

CANARY = b"canary-of-alice!" * 256
WRITER = Label((("acm", "red"),))


class Vault:
    """The disk of a host, served as a real one is, that nobody uses and `red` has written."""

    def __init__(self, host: Host, file: Path) -> None:
        self.host = host
        old, resource, _ = host.node.resources._made["vault"]
        self.spec = msgspec.structs.replace(old, file=str(file))
        folder = file.parent
        means = Means(cast("object", None), None, folder, folder, Keys(folder / "keys"))  # type: ignore[arg-type]
        self.uses = DiskUses(means, self.spec)
        self.resource = Resource("vault", resource.label, "disk", self.uses)
        self.resource.written = frozenset({WRITER})
        self.take_over()

    def take_over(self) -> None:
        """Be the disk of that name from now on."""
        self.host.node.resources._made["vault"] = self.spec, self.resource, self.uses


def disks(folder: Path, scene: Callable[[Host], Awaitable[None]]) -> None:
    """Play a scene on a host whose system has a disk."""
    play(folder, scene, LABELLED, SYSTEM)


def test_a_release_that_wipes_nothing_forgets_nobody(tmp_path: Path) -> None:
    """While the image is away its writers count; `forget` is another step, recorded as such."""

    async def scene(host: Host) -> None:
        vault = Vault(host, tmp_path / "vault.img")
        with pytest.raises(BadImage, match="nothing was wiped"):
            await host.handle(wire.ReleaseDisk("vault"), Client("op"))
        assert vault.resource.written == {WRITER}
        answer = await host.handle(wire.ForgetDisk("vault"), Client("op"))
        assert isinstance(answer, dict)
        assert (answer["written"], vault.resource.written) == (["red"], frozenset())
        (noted,) = host.audit.events("forgotten")
        assert (noted["resource"], noted["done"]) == ("vault", answer["done"])
        assert host.audit.events("allow")[-1]["gone"] is True
        assert not host.audit.events("released")

    disks(tmp_path, scene)


def test_a_disk_that_is_there_is_released_and_never_just_forgotten(tmp_path: Path) -> None:
    """The control of the test before: what is there is wiped."""

    async def scene(host: Host) -> None:
        vault = Vault(host, tmp_path / "vault.img")
        (tmp_path / "vault.img").write_bytes(CANARY)
        with pytest.raises(StateError, match="is there, and not wiped"):
            await host.handle(wire.ForgetDisk("vault"), Client("op"))
        assert vault.resource.written == {WRITER}
        await host.handle(wire.ReleaseDisk("vault"), Client("op"))
        assert (tmp_path / "vault.img").read_bytes() == bytes(len(CANARY))
        assert vault.resource.written == frozenset()
        with pytest.raises(NotFound):
            await host.handle(wire.ForgetDisk("volt"), Client("op"))

    disks(tmp_path, scene)


@pytest.mark.parametrize("other", [True, False])
def test_what_is_released_is_the_disk_that_was_asked_about(tmp_path: Path, other: bool) -> None:
    """While the record is written another disk gets the name: it is not touched, nor the first.

    The control: nothing comes in between.
    """

    async def scene(host: Host) -> None:
        files = tmp_path / "first.img", tmp_path / "second.img"
        for file in files:
            file.write_bytes(CANARY)
        second, first = Vault(host, files[1]), Vault(host, files[0])
        host.audit.gate = asyncio.Event()
        asking = asyncio.ensure_future(host.handle(wire.ReleaseDisk("vault"), Client("op")))
        await ticks()
        if other:
            second.take_over()
        host.audit.gate.set()
        if other:
            with pytest.raises(StaleGeneration, match="another one now"):
                await asking
        else:
            await asking
        assert files[1].read_bytes() == CANARY
        assert (files[0].read_bytes() == CANARY) is other
        assert (first.resource.written, second.resource.written) == (
            frozenset({WRITER} if other else ()),
            frozenset({WRITER}),
        )

    disks(tmp_path, scene)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_who_is_refused_an_image_is_not_listed_as_its_writer(tmp_path: Path, kind: str) -> None:
    """By the real judge of images; the denial has a record. The control: it is served."""

    async def scene(host: Host) -> None:
        file = tmp_path / "vault.img"
        if kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)
        resource = host.node.monitor.resources["vault"]
        served = resource.bridges
        vault = Vault(host, file)
        vault.uses.means = vault.uses.means._replace(waiting=lambda: unix_waiting(tmp_path))
        vault.resource = resource
        resource.bridges = vault.uses
        vault.take_over()
        (refused,) = await host.node.up(lambda event: None)
        assert "vault.img" in refused.text
        assert "DISK-IMAGE" in refused.text
        with pytest.raises(BadImage) as denied:
            await host.handle(wire.Connect("a", "vault"), Client("op"))
        (*_, deny) = host.audit.events("deny")
        assert cast("dict[str, str]", deny["why"])["code"] == "DISK-IMAGE"
        assert denied.value.record
        assert (await listed(host), resource.written) == ([], frozenset())
        resource.bridges = served
        await host.handle(wire.Connect("a", "vault"), Client("op"))
        assert await listed(host) == ["red"]

    disks(tmp_path, scene)


async def listed(host: Host) -> object:
    """Return who has written the disk, as `disk list` says."""
    (row,) = cast("list[dict[str, object]]", await host.handle(wire.Disks(), Client("op")))
    return row["written"]
