"""One-way streams after a restart: their relays go on with them, and their sources are not told."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from skerry.node import recover
from tests.support.left import Scene

BETWEEN = {1: ("awake", "frozen"), 2: ("frozen", "other")}
"""The first has a sink that does not answer, the second such a source."""


async def carries(scene: Scene, number: int) -> bool:
    """Say whether a byte that the source writes comes out at the sink soon."""
    ends = scene.minted[number].ends
    os.set_blocking(ends["sink"], False)
    os.write(ends["source"], b"x")
    for _ in range(500):
        try:
            return os.read(ends["sink"], 1) == b"x"
        except BlockingIOError:
            await asyncio.sleep(0.01)
    return False


def test_a_one_way_stream_goes_on_with_its_relay_and_is_cut_with_it(tmp_path: Path) -> None:
    """Bytes cross without a machine having answered; a cut, then, ends the relay."""

    async def main() -> None:
        scene = Scene(BETWEEN, one_way=True)
        await scene.begin(tmp_path)
        assert scene.live() == set(scene.watched) == {1, 2}
        assert await carries(scene, 1)
        assert await carries(scene, 2)
        scene.world.monitor.cut(1)
        assert os.read(scene.minted[1].ends["sink"], 1) == b"", "the relay is dead"
        assert await carries(scene, 2)
        scene.thaw.set()
        await scene.recovery.adopt()
        assert scene.live() == {2}
        await scene.end()

    asyncio.run(main())


def test_a_source_is_not_told_that_its_sink_never_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channel is stranded, and its source keeps its end.

    The control: one whose source never answered is cut.
    """

    async def main() -> None:
        monkeypatch.setattr(recover, "ADOPT_S", 0.05)
        scene = Scene(BETWEEN, one_way=True)
        await scene.begin(tmp_path)
        await scene.recovery.adopt()
        await scene.world.monitor.domain("frozen").gone.wait()
        assert scene.live() == {1}
        assert scene.world.monitor.channels.get(1).stranded
        assert "detach" not in scene.left["awake"].calls
        assert not scene.relays.started[1].exited.done()
        assert "detach" in scene.left["other"].calls
        assert (scene.recovery.found.channels, set(scene.recovery.found.cut)) == ([1], {2})
        await scene.end()

    asyncio.run(main())


def test_what_a_restart_finds_without_sink_or_relay_is_cut_with_its_reason(
    tmp_path: Path,
) -> None:
    """Also the relay of a channel without a sink ends."""

    async def main() -> None:
        scene = Scene({1: ("awake", "other"), 2: ("awake", "frozen")}, one_way=True)
        await scene.begin(tmp_path, gone=["other"], relayless=2)
        assert scene.live() == set()
        assert scene.recovery.found.cut == {1: recover.GONE, 2: recover.UNBRIDGED}
        await scene.relays.started[1].exited
        scene.thaw.set()
        await scene.recovery.adopt()
        assert "detach" in scene.left["awake"].calls
        await scene.end()

    asyncio.run(main())
