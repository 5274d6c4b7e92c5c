"""A helper's jail: what its own kind of filter and root stop, and what a helper holds."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.errors import LayerMissing
from skerry.jail import identity
from skerry.jail.confinement import LAYERS, Confinement
from skerry.jail.probe import attempts, probes
from skerry.machine import jailed
from skerry.node import helpers
from skerry.node.helper_root import PYTHON, helper_root
from skerry.node.helpers import Helpers
from tests.support.supervisor import running_supervisor

ACCEPTED = frozenset({"cgroup", "landlock"})
OPENED = (
    "import os, sys, errno\n"
    "def no(*w):\n"
    "    try: os.close(os.open(*w))\n"
    "    except OSError as error: return errno.errorcode[error.errno]\n"
    "    return 'opened'\n"
    "words = [no(sys.argv[1], os.O_RDONLY), no(sys.argv[1], os.O_RDWR),\n"
    "    no('/tmp/skerry-no', os.O_CREAT | os.O_RDONLY), no('/tmp', os.O_TMPFILE | os.O_RDWR)]\n"
    "os.write(1, ' '.join(['done', *words]).encode())\n"
)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory that the jails' uids can traverse."""
    with tempfile.TemporaryDirectory(prefix="skerry-jail-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def tried(jail: Confinement, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return what works of everything that a hostile program would try in a jail."""
    monkeypatch.setattr(probes, "PYTHON", str(PYTHON))
    a, b = probes.stream_pair()
    with a, b, probes.bait() as held_out:
        worked, trouble = probes.finish(probes.start(jail, held_out, (a.fileno(), b.fileno())))
    assert worked is not None, trouble
    return worked


@pytest.mark.parametrize("profile", ["helper", "relay"])
def test_a_helper_gets_out_by_no_attempt(
    profile: str, directory: Path, pool: identity.IdentityPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that is tried nothing works."""
    jail = Confinement(
        str(helper_root(directory).root), pool.take("helper"), profile=profile, accepted=ACCEPTED
    )
    assert tried(jail, monkeypatch) == set()


def test_the_attempts_succeed_without_the_layers(
    directory: Path, pool: identity.IdentityPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: in the same root, every attempt works once the layers are off."""
    worked: set[str] = set()
    # Who has got into a user namespace of his own has no uid there: what needs one is tried apart.
    for kept in (set(), {"user-namespace"}):
        worked |= tried(
            Confinement(
                str(helper_root(directory).root),
                identity.own(),
                profile="helper",
                accepted=frozenset(LAYERS),
                without=frozenset(LAYERS) - kept,
            ),
            monkeypatch,
        )
    words = ["1", "0", "1", "n", "/f", "1", "1", "0", "0"]
    # These two are the kernel's and the transport's: see test_jail for their controls.
    wanted = set(attempts.attempts(words)) - {"pass-descriptor", "new-privileges"}
    assert worked >= wanted


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ({"filesystem"}, ["opened", "EPERM", "EPERM", "EPERM"]),
        ({"filesystem", "seccomp"}, ["opened", "opened", "opened", "opened"]),
    ],
)
def test_the_filter_alone_lets_nothing_be_opened_for_writing(
    without: set[str],
    words: list[str],
    directory: Path,
    pool: identity.IdentityPool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With the host's files in sight they can be read only; without the filter, written too."""
    monkeypatch.setattr(probes, "PYTHON", str(PYTHON))
    script = tmp_path / "attempts.py"
    script.write_text(OPENED)
    monkeypatch.setattr(probes, "__file__", str(script))
    target = directory / "target"
    target.touch()
    target.chmod(0o666)
    Path("/tmp/skerry-no").unlink(missing_ok=True)
    jail = Confinement(
        str(helper_root(directory).root),
        pool.take("open"),
        profile="helper",
        accepted=ACCEPTED | without,
        without=frozenset(without),
    )
    process = probes.start(jail, [str(target)], (1, 2))
    out, err = process.communicate(timeout=10)
    Path("/tmp/skerry-no").unlink(missing_ok=True)
    assert out.decode().split() == ["done", *words], err


def test_a_helper_holds_what_it_was_given(
    directory: Path, pool: identity.IdentityPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by the supervisor it has its descriptor, a uid of its own, and no privilege."""
    code = (
        "import os\n"
        "held = []\n"
        "for n in range(64):\n"
        "  try: os.fstat(n); held.append(n)\n"
        "  except OSError: pass\n"
        "os.write(7, repr((held, os.getuid(), os.getpid())).encode())\n"
    )
    argv = [str(PYTHON), "-I", "-S", "-c", code]
    monkeypatch.setattr(helpers, "command", lambda module: argv)
    monkeypatch.setenv("SKERRY_SHARE", str(directory))
    own = pool.take("held")

    async def run() -> bytes:
        async with running_supervisor() as client:
            maker = Helpers(client, lambda name: own, ACCEPTED)
            ours, theirs = socket.socketpair()
            with ours, theirs:
                process = await maker.start("helper", "none", {7: theirs.fileno()})
                theirs.close()
                ours.setblocking(False)
                said = await asyncio.get_running_loop().sock_recv(ours, 1000)
                assert await process.exited == 0
            await maker.close()
            return said

    assert asyncio.run(run()).decode() == repr(([0, 1, 2, 7], own.uid, 1))


def test_a_missing_layer_is_a_denial_until_it_is_accepted(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a uid of its own a helper does not start, and starts where that is accepted."""
    monkeypatch.setattr(helpers, "command", lambda module: [str(PYTHON), "-I", "-S", "-c", "1"])
    monkeypatch.setenv("SKERRY_SHARE", str(directory))

    async def run() -> None:
        async with running_supervisor() as client:
            own = identity.own()
            with pytest.raises(LayerMissing, match="lacks uid"):
                await Helpers(client, lambda name: own, ACCEPTED).start("helper", "none", {})
            process = await Helpers(client, lambda name: own, ACCEPTED | {"uid"}).start(
                "helper", "none", {}
            )
            assert await process.exited == 0

    asyncio.run(run())


def test_a_folder_that_a_jail_s_uid_cannot_enter_is_named(
    directory: Path, pool: identity.IdentityPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to do is said; as a helper of that uid would fail there (the control) without a word."""
    monkeypatch.setattr(helpers, "command", lambda module: [str(PYTHON), "-I", "-S", "-c", "1"])
    private = directory / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setenv("SKERRY_SHARE", str(private / "share"))

    async def run() -> None:
        async with running_supervisor() as client:
            maker = Helpers(client, pool.take, ACCEPTED)
            with pytest.raises(LayerMissing, match=f"cannot enter {private}; .*chmod o"):
                await maker.start("helper", "none", {})
            with monkeypatch.context() as patch:
                patch.setattr(jailed, "_require_reachable", lambda jail: None)
                unchecked = await maker.start("helper", "none", {})
                assert await unchecked.exited != 0
            private.chmod(0o711)
            process = await maker.start("helper", "none", {})
            assert await process.exited == 0
            await maker.close()

    asyncio.run(run())


def test_the_root_follows_the_files_it_is_made_from(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files give the same root, untouched; a file that was touched gives another."""
    from skerry.node import helper_root as module

    first = helper_root(directory)
    made = [path.stat().st_ctime_ns for path in first]
    assert helper_root(directory) == first
    assert [path.stat().st_ctime_ns for path in first] == made
    changed = directory / "changed.py"
    changed.touch()
    files = dict(module._packages())
    monkeypatch.setattr(module, "_packages", lambda: {**files, "changed.py": changed})
    second = helper_root(directory)
    os.utime(changed, ns=(0, 0))
    third = helper_root(directory)
    assert {first.root} == {second.root, third.root}
    assert len({first.packages, second.packages, third.packages}) == 3


def test_a_helper_that_is_started_again_takes_no_other_identity(
    directory: Path, pool: identity.IdentityPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its earlier process has ended then; what is lost again and again uses nothing up."""
    sleeping = [str(PYTHON), "-I", "-S", "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(helpers, "command", lambda module: sleeping)
    monkeypatch.setenv("SKERRY_SHARE", str(directory))
    taken: list[str] = []

    def take(name: str) -> identity.Identity:
        taken.append(name)
        return pool.take(name)

    async def run() -> None:
        async with running_supervisor() as client:
            maker = Helpers(client, take, ACCEPTED)
            first = await maker.start("one", "none", {})
            other = await maker.start("other", "none", {})
            second = await maker.start("one", "none", {})
            assert first.exited.done()
            assert not other.exited.done()
            assert taken == ["one", "other"]
            await maker.close()
            assert second.exited.done() and other.exited.done()

    asyncio.run(run())


def test_a_helper_can_read_what_a_careful_owner_made(directory: Path) -> None:
    """Under a umask that hides everything the root is as readable as it must be."""
    before = os.umask(0o077)
    try:
        made = helper_root(directory / "hidden")
    finally:
        os.umask(before)
    for place in made:
        for path in place.rglob("*"):
            assert path.stat().st_mode & 0o004, path
            assert not path.stat().st_mode & 0o222, path
