"""What a QEMU with slots has more than others: its own descriptors by name, and what that opens.

The attempts of the jail's probes are made again in such a jail; then what the names could lead to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.jail import root
from skerry.jail.confinement import Confinement
from skerry.jail.identity import IdentityPool
from skerry.jail.probe import probes
from skerry.machine.qemu.root import own_descriptors
from tests.support.stand_ins import StandIn
from tests.support.supervisor import running_supervisor

BINDS = own_descriptors("pc")

LOOK = """
import os, time
def lists(path):
    try: return sorted(os.listdir(path))
    except OSError: return None
own = [n for n in range(64) if os.path.exists(f"/proc/self/fd/{n}")]
there = [p for p in ("status", "mem", "maps", "root", "cwd", "exe") if
    os.path.lexists(f"/proc/self/{p}") or os.path.lexists(f"/proc/self/fd/../{p}")]
print(repr((lists("/proc"), lists("/proc/self"), there)), flush=True)
time.sleep(60)
"""

REOPEN = """
import os, time
try:
    os.write(os.open("/proc/self/fd/3", os.O_WRONLY | os.O_NONBLOCK), b"!")
    print("wrote", flush=True)
except OSError as error: print(type(error).__name__, flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory that the jails' uids can traverse."""
    with tempfile.TemporaryDirectory(prefix="skerry-jail-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_nothing_that_the_probes_try_works_in_it(directory: Path, pool: IdentityPool) -> None:
    """As in the jail without; that each attempt is a real one, test_jail.py shows."""
    points = ("usr/", *(f"{inside}/" for _, inside in BINDS))
    made = root.build(directory, "probe-fds", (), (), points, probes._LINKS)
    jail = Confinement(
        str(made),
        pool.take("probe"),
        binds=(("/usr", "/usr"), *BINDS),
        accepted=frozenset({"cgroup"}),
    )
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(end) for end in probes.stream_pair())
        held_out = stack.enter_context(probes.bait())
        process = probes.start(jail, held_out, (a.fileno(), b.fileno()))
        worked, trouble = probes.finish(process)
    assert worked == set(), trouble


def said(program: str, end: int, pool: IdentityPool | None, *off: str) -> str:
    """Run a program in such a jail with one descriptor; return its line."""

    async def run() -> str:
        async with running_supervisor() as client:
            stand_in = StandIn(client, pool, frozenset(off), descriptors=True)
            await stand_in.start(program, end)
            try:
                return await stand_in.line()
            finally:
                await stand_in.close()

    return asyncio.run(run())


def test_the_names_lead_to_nothing_else_of_proc(pool: IdentityPool) -> None:
    """There is the one folder: no other process, and nothing else of its own."""
    with Path("/dev/null").open() as null:
        assert said(LOOK, null.fileno(), pool) == "(['self'], ['fd'], [])"
        control = said(LOOK, null.fileno(), pool, "filesystem")
    assert "'1'" in control and "'status'" in control and "'mem'" in control


@pytest.mark.parametrize(
    ("mode", "answer"), [(0o644, "PermissionError"), (0o666, "wrote")], ids=["held", "control"]
)
def test_a_file_is_opened_anew_only_as_its_mode_allows(
    mode: int, answer: str, directory: Path, pool: IdentityPool
) -> None:
    """A descriptor to read is opened to write where others may write the file, and only there."""
    path = directory / f"file-{mode:o}"
    path.touch()
    path.chmod(mode)
    with path.open() as file:
        assert said(REOPEN, file.fileno(), pool) == answer


@pytest.mark.parametrize(("owner", "answer"), [(False, "PermissionError"), (True, "wrote")])
def test_a_pipe_is_not_opened_the_other_way(owner: bool, answer: str, pool: IdentityPool) -> None:
    """The end of a one-way stream is its maker's; the control: without the layer uid it opens.

    (Then it leads into its own pipe: `test_an_end_that_is_opened_the_other_way_leads_nowhere`.)
    """
    read, write = os.pipe()
    try:
        assert said(REOPEN, read, None if owner else pool, *(["uid"] if owner else [])) == answer
    finally:
        os.close(read)
        os.close(write)
