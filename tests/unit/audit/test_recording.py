"""A node's trail from its first record to its last checkpoint."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from skerry.audit import service
from skerry.audit.chain import verify
from skerry.audit.checkpoint import CHECKPOINT, Checks, read_public
from skerry.audit.connection import Killable
from skerry.audit.head import read_head
from skerry.audit.read import read_lines
from skerry.audit.record import parse_record
from skerry.cli.audit import audit
from skerry.errors import AuditUnavailable
from skerry.node import paths
from skerry.node.recording import NAME, Recording
from skerry.system.model import Audit
from tests.support.audit import Writers, until


@pytest.fixture
def writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writers:
    """Give the node a home, and writers without a jail."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path))
    return Writers()


def launcher(writers: Writers) -> object:
    """Return what starts a helper."""

    async def launch(name: str, module: str, fds: Mapping[int, int]) -> Killable:
        assert (name, module) == (NAME, service.__name__)
        return await writers.start(fds[service.SOCKET])

    return launch


async def life(writers: Writers, *events: str) -> None:
    """Live as a node that records these."""
    recording = await Recording.open(launcher(writers), Audit())  # type: ignore[arg-type]
    for event in events:
        await recording.trail.append(event, {})
    await recording.close()
    await asyncio.to_thread(writers.reap)


def test_every_life_ends_with_a_checkpoint_that_holds(writers: Writers) -> None:
    """Two lives of a node: both signed to the end, by one key, and the head noted."""
    asyncio.run(life(writers, "up", "allow", "down"))
    asyncio.run(life(writers, "up", "down"))
    lines = list(read_lines(paths.audit_file()))
    events = [parse_record(line).event for line in lines]
    assert events == ["up", "allow", "down", CHECKPOINT, "up", "down", CHECKPOINT]
    checks = Checks([read_public(paths.audit_public())])
    proof = verify(lines, at_least=read_head(paths.audit_head()), see=checks.see)
    assert (proof.broken, checks.holding, checks.signed) == (0, 2, 6)
    head = read_head(paths.audit_head())
    assert head is not None
    assert head.n == len(lines)
    shown = json.loads(CliRunner().invoke(audit, ["verify", "--json"]).output)
    assert (shown["checkpoints"], shown["unsigned"]) == (2, 1)
    modes = {path.name: path.stat().st_mode & 0o777 for path in paths.state_dir().iterdir()}
    assert set(modes) == {"audit.log", "audit.head", "audit.key", "audit.pub"}
    assert modes["audit.key"] == modes["audit.log"] == 0o600


def test_a_node_does_not_start_on_a_trail_that_was_cut(writers: Writers) -> None:
    """Whoever takes records off the end between two lives is found at the next start."""
    asyncio.run(life(writers, "up", "allow", "down"))
    whole = paths.audit_file().read_bytes()
    paths.audit_file().write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    with pytest.raises(AuditUnavailable, match="had reached record 4"):
        asyncio.run(life(writers))
    paths.audit_file().write_bytes(whole)
    asyncio.run(life(writers, "up"))


def test_a_node_that_goes_on_refuses_until_its_writer_starts(writers: Writers) -> None:
    """After a restart no writer is no end: notes wait, appends are denied, then all is well."""

    async def main() -> None:
        writers.fails = True
        launch = launcher(writers)
        recording = await Recording.open(launch, Audit(), insist=False)  # type: ignore[arg-type]
        states = [str(recording.trail.state)]
        with pytest.raises(AuditUnavailable, match="no process"):
            await recording.trail.append("allow", {})
        recording.trail.note("cut", {})
        writers.fails = False
        await until(lambda: recording.trail.state == "running")
        assert states == ["restarting"]
        await recording.trail.append("allow", {})
        await recording.close()
        await asyncio.to_thread(writers.reap)

    asyncio.run(main())
    events = [parse_record(line).event for line in read_lines(paths.audit_file())]
    assert events == ["cut", "recovered", "allow", CHECKPOINT]


def test_a_node_does_not_start_without_its_writer(writers: Writers) -> None:
    """No writer, no node; and the file is free again afterwards."""
    writers.fails = True
    with pytest.raises(AuditUnavailable, match="no process"):
        asyncio.run(life(writers))
    writers.fails = False
    asyncio.run(life(writers, "up"))
