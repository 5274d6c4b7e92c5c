"""The first rise of a system, also where the service was killed in the middle of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from skerry.control import service
from skerry.node.journal import NodeJournal, read_journal
from skerry.node.opening import Opened
from skerry.node.standing import Standing
from tests.unit.control.test_calls import Host, play


class Store:
    """A supervisor that takes everything."""

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Do nothing."""

    async def drop(self, *names: str) -> None:
        """Do nothing."""


async def rise(host: Host, journal: NodeJournal) -> None:
    """Do what the service does once it listens."""
    opened = Opened(host.node, cast(Any, None), cast(Any, None), journal, None)
    report = cast(service.Reporter, lambda event: host.events.append(dict(event)))
    await service._rise(opened, report)


def test_a_rise_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    """What was not started is, what was paused runs, what runs is left; then it has risen."""

    async def scene(host: Host) -> None:
        path = tmp_path / "journal.log"
        journal = await NodeJournal.open(path, Store(), Standing(token="t", rising=True))
        await host.node._start_paused(host.node.setup.owner, "a")
        machine = host.machines["a"]
        await rise(host, journal)
        assert {row["state"] for row in await host.node.ps(host.node.setup.owner)} == {"running"}
        assert host.machines["a"] is machine
        assert len(host.monitor.channels) == 1
        assert not [event for event in host.events if event["event"] == "refused"]
        await host.node.kill("b")
        await rise(host, journal)
        assert host.node.alive() == ["a"], "it has risen: what was ended stays so"
        await journal.close()
        standing = read_journal(path)
        assert standing is not None
        assert not standing.rising

    play(tmp_path, scene)


def test_a_restart_before_the_end_of_the_rise_is_known_to_the_next_service(tmp_path: Path) -> None:
    """The journal says that the system is rising until it says that it has risen."""

    async def main() -> None:
        path = tmp_path / "journal.log"
        journal = await NodeJournal.open(path, Store(), Standing(token="t", rising=True))
        await journal.close()
        standing = read_journal(path)
        assert standing is not None
        assert standing.rising

    asyncio.run(main())
