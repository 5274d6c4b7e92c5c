"""The system in force in a file: the same again, unaltered, or not at all."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from skerry.audit.writer import RETRY_S
from skerry.errors import Denied, SkerryError
from skerry.machine.simulator.disk import SimulatedDisk
from skerry.node.journal import NodeJournal
from skerry.node.kept import SetupKeeper, forget_setups, read_setup, save_setup
from skerry.node.setup import Setup, carried, load_setup
from skerry.node.standing import Standing
from skerry.policy.source import NewPolicy, changed
from tests.support.simulated import POLICY, SYSTEM, write_system


def setup_in(folder: Path) -> Setup:
    """Load the small system with everything that a file may hold."""
    more = '\n[operators]\n"uid:12345" = "broker"\n[alarm.red]\nstop = ["red"]\n'
    more += "[limits]\ndomains = 9\n"
    return load_setup(Path(write_system(folder, SYSTEM + more)))


class NoSupervisor:
    """Keeps nothing."""

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Do nothing."""

    async def drop(self, *names: str) -> None:
        """Do nothing."""


def same(one: Setup, other: Setup) -> bool:
    """Compare all but the stacks' objects."""
    return (
        one.system == other.system
        and one.policy.sources == other.policy.sources
        and one.stack.digest == other.stack.digest
        and (dict(one.labels), dict(one.operators)) == (dict(other.labels), dict(other.operators))
        and (one.owner, one.warnings) == (other.owner, other.warnings)
    )


def test_what_was_in_force_is_read_though_the_files_changed(tmp_path: Path) -> None:
    """Also after a change of policy that no file of the user's holds."""
    setup = setup_in(tmp_path)
    wider = changed(setup.policy, NewPolicy("x", POLICY.replace('"1.0"', '"1.1"').encode()))
    after = carried(setup, wider)
    names = save_setup(tmp_path, setup), save_setup(tmp_path, after)
    (tmp_path / "system.toml").unlink()
    (tmp_path / "policy.toml").unlink()
    assert same(read_setup(tmp_path, names[0]), setup)
    assert same(read_setup(tmp_path, names[1]), after)
    assert read_setup(tmp_path, names[0]).system.line(("domains", "red", "label")) > 0
    forget_setups(tmp_path, names[1])
    with pytest.raises(SkerryError, match="cannot be read"):
        read_setup(tmp_path, names[0])


def test_an_altered_setup_is_refused(tmp_path: Path) -> None:
    """One changed bit, a torn end, and bytes that hash well but are no setup."""
    name = save_setup(tmp_path, setup_in(tmp_path))
    whole = (tmp_path / name).read_bytes()
    for altered in (whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b""):
        (tmp_path / name).write_bytes(altered)
        with pytest.raises(SkerryError, match="not what its name says"):
            read_setup(tmp_path, name)
    import hashlib

    other = msgspec.msgpack.encode({"system": 1})
    made = f"setup-{hashlib.sha256(other).hexdigest()}"
    (tmp_path / made).write_bytes(other)
    with pytest.raises(SkerryError, match="cannot be read"):
        read_setup(tmp_path, made)


def test_a_change_that_settles_leaves_one_that_is_being_written_down_alone(tmp_path: Path) -> None:
    """The file of a load under way is not removed by another call, nor undone by an older one."""
    setup = setup_in(tmp_path)
    first, second = (
        carried(setup, changed(setup.policy, NewPolicy("x", POLICY.replace("1.0", n).encode())))
        for n in ("1.1", "1.2")
    )
    state = tmp_path / "state"
    state.mkdir(mode=0o700)

    async def main() -> None:
        journal = await NodeJournal.open(state / "journal.log", NoSupervisor(), Standing())
        keeper = SetupKeeper(journal, state)
        await keeper.keep(setup, 1)
        waiting = asyncio.ensure_future(keeper.keep(first, 2))
        await asyncio.sleep(0)
        await keeper.settle(second, setup, 1, {})  # as a dry run does
        await waiting
        assert same(read_setup(state, journal.standing.setup), first)
        await keeper.keep(second, 3)
        await keeper.settle(first, setup, 1, {})  # the second came in between
        assert same(read_setup(state, journal.standing.setup), second)
        await keeper.settle(second, setup, 1, {})  # the control: it is the last, and is undone
        assert same(read_setup(state, journal.standing.setup), setup)
        assert len(list(state.glob("setup-*"))) == 1
        await journal.close()

    asyncio.run(main())


def test_a_setup_whose_record_failed_stays_until_another_stands(tmp_path: Path) -> None:
    """The record may be on the disk after a crash, so what it names must be there too."""
    setup = setup_in(tmp_path)
    other = carried(
        setup, changed(setup.policy, NewPolicy("x", POLICY.replace("1.0", "1.1").encode()))
    )
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    disk = SimulatedDisk()

    async def main() -> None:
        journal = await NodeJournal.open(state / "journal.log", NoSupervisor(), Standing(), disk)
        keeper = SetupKeeper(journal, state)
        await keeper.keep(setup, 1)
        disk.faults["sync"] = errno.EIO
        with pytest.raises(Denied):
            await keeper.keep(other, 2)
        with pytest.raises(Denied):
            await keeper.settle(other, setup, 1, {})
        await keeper.settle(setup, setup, 1, {})
        assert len(list(state.glob("setup-*"))) == 2
        disk.faults.clear()
        await asyncio.sleep(RETRY_S + 0.1)
        await keeper.keep(setup, 1)
        await keeper.settle(setup, setup, 1, {})
        assert len(list(state.glob("setup-*"))) == 1, "the control: nothing is kept for ever"
        await journal.close()

    asyncio.run(main())


def test_what_a_killed_node_had_begun_to_write_is_removed_with_the_old_setups(
    tmp_path: Path,
) -> None:
    """Whatever process wrote it; what is in force stays, and so does everything else."""
    name = save_setup(tmp_path, setup_in(tmp_path))
    (tmp_path / f".{name}.4711").write_bytes(b"half")
    (tmp_path / "setup-old").write_bytes(b"")
    (tmp_path / ".other").write_bytes(b"")
    kept = {path.name for path in tmp_path.iterdir()} - {f".{name}.4711", "setup-old"}
    forget_setups(tmp_path, name)
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert name in kept
