"""Who has written a resource: on the disk before it can be, and never forgotten by mistake."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from skerry.device.resource import Uses
from skerry.errors import Denied, PolicyError
from skerry.label import Label
from skerry.monitor.domain import Resource
from skerry.node.journal import NodeJournal
from skerry.node.resources import Resources, lives_on
from skerry.node.standing import Standing
from skerry.node.written import Written
from skerry.system.model import ResourceSpec
from tests.support.left import Store
from tests.support.monitor import World, label
from tests.support.resources import ToyUses

DISK = ResourceSpec("vault", "disk", "vault", file="/srv/vault.img")


def test_what_was_written_down_is_read_again(tmp_path: Path) -> None:
    """By the thing itself: another name for the same image has the same writers."""

    async def main() -> None:
        written = Written(tmp_path / "written.json")
        assert written.of("disk:/srv/vault.img") == frozenset()
        stacked = Label((("acm", "a"), ("flask", "u:r:t")))
        await written.keep("disk:/srv/vault.img", [label("a"), stacked])
        again = Written(tmp_path / "written.json")
        assert again.of("disk:/srv/vault.img") == {label("a"), stacked}
        assert again.of("disk:/srv/other.img") == frozenset()
        await again.keep("disk:/srv/vault.img", [])
        assert Written(tmp_path / "written.json").of("disk:/srv/vault.img") == frozenset()

    asyncio.run(main())


def test_a_damaged_record_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    """One flipped byte is enough."""
    path = tmp_path / "written.json"
    asyncio.run(Written(path).keep("disk:/x", [label("a")]))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(PolicyError):
        Written(path)


class Scene:
    """A world whose disk `vault` is of the system file, with its record and journal."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "written.json"
        self.written = Written(self.path)
        self.uses = ToyUses()
        self.resources = Resources({"disk": self._maker}, self.written)
        self.world: World

    def _maker(self, spec: ResourceSpec, resource: object) -> Uses:
        return self.uses

    async def begin(self, folder: Path) -> None:
        """Run two domains that may use it."""
        journal = await NodeJournal.open(folder / "journal.log", Store(), Standing())
        journal.written = self.resources.save
        self.world = World(journal)
        resource = Resource("vault", label("vault"), "disk", self.uses)
        resource.written = self.written.of(lives_on(DISK))
        self.resources._made["vault"] = DISK, resource, self.uses
        self.world.monitor.resources["vault"] = resource
        self.world.allow(("a", "vault"), ("b", "vault"))
        await self.world.run("a", "b")

    def on_disk(self) -> set[str]:
        """Return who has written it, as the next node would read."""
        return {str(each) for each in Written(self.path).of(lives_on(DISK))}


def test_a_writer_is_on_disk_before_a_machine_has_its_end(tmp_path: Path) -> None:
    """Who only reads writes nothing; a relabel that keeps the use counts from before its effect."""

    async def main() -> None:
        scene = Scene(tmp_path)
        await scene.begin(tmp_path)
        await scene.world.monitor.bind("a", "vault", one_way=True)
        assert scene.on_disk() == set()
        seen: list[set[str]] = []
        attach = scene.world.machines["a"].attach

        async def looking(*words: object) -> None:
            seen.append(scene.on_disk())
            await attach(*words)  # type: ignore[arg-type]

        scene.world.machines["a"].attach = looking  # type: ignore[method-assign, assignment]
        await scene.world.monitor.bind("a", "vault")
        assert seen == [{"a"}]
        await scene.world.monitor.relabel(scene.world.operator, "a", label("b"))
        assert scene.on_disk() == {"a", "b"}
        scene.world.close()
        await scene.world.monitor.settle()

    asyncio.run(main())


def test_a_relabel_that_loses_the_use_writes_nobody_down(tmp_path: Path) -> None:
    """The new label has never written it."""

    async def main() -> None:
        scene = Scene(tmp_path)
        await scene.begin(tmp_path)
        await scene.world.monitor.bind("a", "vault")
        await scene.world.monitor.relabel(scene.world.operator, "a", label("stranger"))
        assert scene.on_disk() == {"a"}
        assert not list(scene.world.monitor.channels)
        scene.world.close()

    asyncio.run(main())


def test_where_it_cannot_be_written_down_there_is_no_use(tmp_path: Path) -> None:
    """The bind is a denial, and no machine has an end; the control: with a folder there is."""

    async def main() -> None:
        scene = Scene(tmp_path)
        await scene.begin(tmp_path)
        scene.written._store._path = tmp_path / "none" / "written.json"
        with pytest.raises(Denied, match="cannot be written down"):
            await scene.world.monitor.bind("a", "vault")
        assert not scene.world.machines["a"].ends
        assert scene.uses.minted[0][2].gone
        scene.written._store._path = scene.path
        await scene.world.monitor.bind("a", "vault")
        assert scene.world.machines["a"].ends
        scene.world.close()
        await scene.world.monitor.settle()

    asyncio.run(main())
