"""What can be taken away after a restart, while a machine does not answer its new node."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from skerry.errors import NotFound, StateError
from skerry.monitor.domain import State
from skerry.node import recover
from skerry.node.recover import end_unknown
from skerry.node.standing import ChannelEntry, DomainEntry, Footprint, Standing
from skerry.supervisor.client import Inherited
from tests.support.left import NAMES, Held, Scene
from tests.support.monitor import label


def test_a_machine_that_does_not_answer_keeps_nothing_from_being_taken_away(
    tmp_path: Path,
) -> None:
    """Before any machine was adopted channels are cut and a domain is killed; others go on."""

    async def main() -> None:
        scene = Scene()
        await scene.begin(tmp_path)
        monitor = scene.world.monitor
        assert scene.live() == {1, 2, 3}
        assert monitor.running() == tuple(sorted(label(name) for name in NAMES))
        with pytest.raises(StateError, match="starting"):
            await monitor.bind("frozen", "awake")
        monitor.cut(1)
        with pytest.raises(NotFound):
            monitor.cut(1)
        adopting = asyncio.ensure_future(scene.recovery.adopt())
        await asyncio.sleep(0.05)
        assert (scene.state("awake"), scene.state("frozen")) == (State.RUNNING, State.STARTING)
        assert scene.live() == {2, 3}
        assert "detach" in scene.left["awake"].calls
        monitor.kill("frozen")
        await monitor.domain("frozen").gone.wait()
        assert scene.live() == {2}
        assert not adopting.done()
        scene.thaw.set()
        await adopting
        found = scene.recovery.found
        assert (set(found.domains), set(found.ended)) == ({"awake", "other"}, {"frozen"})
        assert (found.channels, set(found.cut)) == ([2], {1, 3})
        await scene.end()

    asyncio.run(main())


def test_a_grant_whose_time_is_over_ends_before_any_machine_answers(tmp_path: Path) -> None:
    """The channel is cut though one of its machines is frozen; the others stay."""

    async def main() -> None:
        scene = Scene()
        await scene.begin(tmp_path, over=3)
        await asyncio.sleep(0.05)
        assert scene.live() == {1, 2}
        scene.thaw.set()
        await scene.recovery.adopt()
        assert {scene.state(name) for name in NAMES} == {State.RUNNING}
        await scene.end()

    asyncio.run(main())


def test_a_machine_that_never_answers_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time it and its channels go, and the report says so; the rest goes on."""

    async def main() -> None:
        monkeypatch.setattr(recover, "ADOPT_S", 0.05)
        scene = Scene()
        await scene.begin(tmp_path)
        await scene.recovery.adopt()
        assert "does not answer" in scene.recovery.found.ended["frozen"]
        assert set(scene.recovery.found.cut) == {1, 3}
        assert scene.live() == {2}
        await scene.world.monitor.domain("frozen").gone.wait()
        await scene.end()

    asyncio.run(main())


def test_a_machine_that_fails_as_nobody_foresaw_is_ended_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its QEMU answered broke the adoption: that domain ends, and the node goes on."""

    async def main() -> None:
        scene = Scene()
        await scene.begin(tmp_path)
        scene.thaw.set()

        async def adopt() -> None:
            raise AttributeError("'list' object has no attribute 'get'")

        monkeypatch.setattr(scene.left["frozen"], "adopt", adopt)
        await scene.recovery.adopt()
        assert "no attribute" in scene.recovery.found.ended["frozen"]
        assert scene.live() == {2}
        assert {scene.state(name) for name in ("awake", "other")} == {State.RUNNING}
        await scene.world.monitor.domain("frozen").gone.wait()
        await scene.end()

    asyncio.run(main())


def test_what_nobody_adopts_is_ended_together_and_waited_for_briefly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half-started machines and binds, and helpers, are killed before a uid is given out.

    What stands is not: a domain, and the relay of a channel that goes one way. One that
    does not end holds up nobody for long.
    """

    async def main() -> None:
        monkeypatch.setattr(recover, "END_S", 0.1)
        standing = Standing()
        standing.domains["d/a/1"] = DomainEntry("a", label("a"), 0.0, Footprint("d/a/1", "toy"))
        for number, one_way in ((1, True), (2, False)):
            standing.channels[number] = ChannelEntry(
                number, "stream", "d/a/1", "d/e/1", "up", one_way, 1, 1, 0.0
            )
        stands = ("d/a/1", "r/1")
        names = (*stands, "d/b/1", "policy-manager", "d/c/1", "d/d/1", "r/2", "r/3")
        processes = {name: Held(mortal=name != "d/c/1") for name in names}
        began = asyncio.get_running_loop().time()
        await end_unknown(Inherited(processes, {}), standing)
        assert asyncio.get_running_loop().time() - began < 1
        assert {name for name in names if not processes[name].killed} == set(stands)

    asyncio.run(main())
