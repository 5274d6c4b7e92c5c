"""What killed nodes of a life left on the host goes at the end of that life."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from skerry.jail import cgroup
from skerry.node import opening, paths
from skerry.node.journal import NodeJournal, read_journal
from skerry.node.standing import Standing


class Store:
    """A supervisor that takes everything."""

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Do nothing."""

    async def drop(self, *names: str) -> None:
        """Do nothing."""


@pytest.mark.parametrize("over", [True, False])
def test_the_groups_of_killed_nodes_go_with_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    """Young as they are, by the numbers that the journal has; not while the system stands."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path))
    groups = tmp_path / "groups"
    groups.mkdir()
    monkeypatch.setattr(cgroup, "_parents", lambda: (2, {"memory": groups}))
    with subprocess.Popen([sys.executable, "-c", ""]) as node:
        node.wait()
    left = groups / f"skerry.{node.pid}.policy-manager.1.abcdef"
    left.mkdir()

    async def main() -> None:
        path = paths.make_private(paths.state_dir()) / paths.journal_file().name
        journal = await NodeJournal.open(path, Store(), Standing(makers=(node.pid,)))
        journal.over = over
        await opening._close(journal, paths.state_dir())
        standing = read_journal(path)
        assert (standing is None) == over
        assert standing is None or standing.makers == (node.pid,)

    asyncio.run(main())
    assert left.exists() != over
