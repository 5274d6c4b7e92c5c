"""Who has written a resource: on the disk before it can be, and never forgotten by mistake."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import pytest

from skerry.device.resource import Uses
from skerry.errors import Denied, PolicyError
from skerry.label import Label
from skerry.node.journal import NodeJournal
from skerry.node.resources import Resources
from skerry.node.setup import Setup
from skerry.node.standing import Standing
from skerry.node.written import Written, lives_on
from skerry.policy.history import FileHistory
from skerry.policy.source import Source, make_policy
from skerry.system.model import ResourceSpec
from skerry.xsm.dummy import DummyModule
from skerry.xsm.stack import History, Stack
from tests.support.left import Store
from tests.support.monitor import World, label
from tests.support.resources import ToyUse, ToyUses

DISK = ResourceSpec("vault", "disk", "vault", file="/srv/vault.img")
ANY = Stack([DummyModule()])
"""A policy whose labels are not those of the tests, so that it has nothing to say of them."""


class Ruled(NamedTuple):
    """What of a setup says the labels."""

    labels: dict[str, Label]
    stack: Stack


def test_what_was_written_down_is_read_again(tmp_path: Path) -> None:
    """By the thing itself: another name for the same image has the same writers."""

    async def main() -> None:
        written = Written(tmp_path / "written.json")
        assert written.of("disk:/srv/vault.img", ANY) == frozenset()
        stacked = Label((("acm", "a"), ("flask", "u:r:t")))
        await written.keep("disk:/srv/vault.img", [label("a"), stacked], ANY)
        again = Written(tmp_path / "written.json")
        assert again.of("disk:/srv/vault.img", ANY) == {label("a"), stacked}
        assert again.of("disk:/srv/other.img", ANY) == frozenset()
        await again.keep("disk:/srv/vault.img", [], ANY)
        assert Written(tmp_path / "written.json").of("disk:/srv/vault.img", ANY) == frozenset()

    asyncio.run(main())


def test_a_damaged_record_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    """One flipped byte is enough."""
    path = tmp_path / "written.json"
    asyncio.run(Written(path).keep("disk:/x", [label("a")], ANY))
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
        self.resources.stack = ANY
        self.world: World

    def _maker(self, spec: ResourceSpec, resource: object) -> Uses:
        return self.uses

    async def begin(self, folder: Path, spec: ResourceSpec = DISK) -> None:
        """Run two domains that may use it."""
        journal = await NodeJournal.open(folder / "journal.log", Store(), Standing())
        journal.written = self.resources.save
        self.world = World(journal)
        setup = cast(Setup, Ruled({"vault": label("vault")}, ANY))
        resource, uses = self.resources._make(spec, setup)
        self.resources._made["vault"] = spec, resource, uses
        self.world.monitor.resources["vault"] = resource
        self.world.allow(("a", "vault"), ("b", "vault"))
        await self.world.run("a", "b")

    def on_disk(self) -> set[str]:
        """Return who has written it, as the next node would read."""
        return {str(each) for each in Written(self.path).of(lives_on(DISK), ANY)}


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
        await scene.world.monitor.bind("a", "vault", port="again")
        assert seen == [{"a"}]
        await scene.world.monitor.relabel(scene.world.operator, "a", label("b"))
        assert scene.on_disk() == {"a", "b"}
        scene.world.close()
        await scene.world.monitor.settle()

    asyncio.run(main())


@pytest.mark.parametrize("refuses", [True, False])
def test_who_is_refused_when_it_is_served_is_never_on_disk(tmp_path: Path, refuses: bool) -> None:
    """Not even for a moment, in which a kill would leave it there; the control: it is served."""

    async def main() -> None:
        scene = Scene(tmp_path)
        await scene.begin(tmp_path)
        mint, seen = scene.uses.mint, []

        def minting(one_way: bool, overflow: str = "block", **how: Any) -> ToyUse:
            use = mint(one_way, overflow, **how)

            async def open_(channel: int) -> None:
                seen.append(scene.on_disk())
                if refuses:
                    raise Denied("it is in use")

            use.open = open_  # type: ignore[method-assign]
            return use

        scene.uses.mint = minting  # type: ignore[method-assign]
        if refuses:
            with pytest.raises(Denied, match="in use"):
                await scene.world.monitor.bind("a", "vault")
        else:
            await scene.world.monitor.bind("a", "vault")
        assert seen == [set()]
        assert scene.on_disk() == (set() if refuses else {"a"})
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


def test_who_writes_what_is_thrown_away_is_not_written_down(tmp_path: Path) -> None:
    """A use with discard counts who wrote the image before, and adds nobody; the control adds."""

    async def main(*, discard: bool) -> None:
        folder = tmp_path / str(discard)
        folder.mkdir()
        scene = Scene(folder)
        await scene.written.keep(lives_on(DISK), [label("b")], ANY)
        await scene.begin(folder, msgspec.structs.replace(DISK, discard=discard))
        await scene.world.monitor.bind("a", "vault")
        assert scene.on_disk() == ({"b"} if discard else {"a", "b"})
        scene.world.close()
        await scene.world.monitor.settle()

    for discard in (True, False):
        asyncio.run(main(discard=discard))


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


POLICY = """
[policy]
name = "tests.written"
version = "1.0"
bootstrap = "system"
[simple-type-enforcement]
types = ["common"]
[labels.system]
ste = ["common"]
[labels.broker]
ste = ["common"]
[resources.vault]
ste = "common"
"""
UPDATE = POLICY.replace(
    'version = "1.0"', 'version = "1.1"\nfrom = { name = "tests.written", version = "1.0" }'
)
RENAMED = UPDATE.replace("[labels.broker]", '[labels.dealer]\nfrom = "broker"')
REUSED = RENAMED + '[labels.broker]\nfrom = "system"\nste = ["common"]\n'
"""`broker` is now called `dealer`, and in the second `broker` is another one's name."""


def stack_of(text: str) -> Stack:
    """Return the modules of a policy."""
    return make_policy([Source("p.toml", text.encode())]).stack


def acm(name: str) -> Label:
    """Make a label of a policy."""
    return Label((("acm", name),))


@pytest.mark.parametrize("after", [RENAMED, REUSED])
def test_who_wrote_is_found_under_the_name_that_a_later_policy_has(
    tmp_path: Path, after: str
) -> None:
    """Also by a node that begins with that policy. Once kept under it, a name is that policy's.

    The control: under the policy before, nothing has another name.
    """

    async def main() -> None:
        path, old, new = tmp_path / "written.json", stack_of(POLICY), stack_of(after)
        await Written(path).keep(lives_on(DISK), [acm("broker")], old)
        assert Written(path).of(lives_on(DISK), old) == {acm("broker")}
        assert Written(path).of(lives_on(DISK), new) == {acm("dealer")}
        resources = Resources({"disk": lambda spec, resource: ToyUses()}, Written(path))
        resources.stack = new
        setup = cast(Setup, Ruled({"vault": acm("resource:vault")}, new))
        made, uses = resources._make(DISK, setup)
        assert made.written == {acm("dealer")}
        resources._made["vault"] = DISK, made, uses
        made.written |= {acm("system"), *({acm("broker")} if after == REUSED else ())}
        await resources.save()
        assert Written(path).of(lives_on(DISK), new) == made.written

    asyncio.run(main())


def test_a_record_without_policies_is_read_by_the_names_in_it(tmp_path: Path) -> None:
    """As one of an earlier version is; what no policy knows stays, and is refused."""

    async def main() -> None:
        path = tmp_path / "written.json"
        kept = {lives_on(DISK): {f'[["acm","{name}"]]': set[str]() for name in ("broker", "lost")}}
        await FileHistory(path).save(cast(History, kept))
        assert Written(path).of(lives_on(DISK), stack_of(RENAMED)) == {acm("dealer"), acm("lost")}

    asyncio.run(main())


def test_an_older_record_never_lands_on_a_newer_one(tmp_path: Path) -> None:
    """Also where who waited for the older gave up: its save goes on, and the next one waits."""

    async def main() -> None:
        written = Written(tmp_path / "written.json")
        save, running = written._store.save, asyncio.Event()
        go, at_once, most = asyncio.Event(), 0, 0

        async def slow(history: History) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            running.set()
            await go.wait()
            await save(history)
            at_once -= 1

        written._store.save = slow  # type: ignore[method-assign]
        one = asyncio.ensure_future(written.keep("disk:/a", [label("a")], ANY))
        await running.wait()
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        other = asyncio.ensure_future(written.keep("disk:/b", [label("b")], ANY))
        await asyncio.sleep(0.01)
        go.set()
        await other
        assert most == 1
        for kept in (written, Written(tmp_path / "written.json")):
            assert kept.of("disk:/a", ANY) == {label("a")}
            assert kept.of("disk:/b", ANY) == {label("b")}

    asyncio.run(main())
