"""What a compromised program in a jail can't do, and which layer stops it.

Every attempt is made in the whole jail, then with each of its layers alone, then with all of them
off: there it must succeed, or the refusals above would prove nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from skerry.jail import confinement, identity
from skerry.jail.confinement import LAYERS, Confinement, command
from skerry.jail.errors import JailError, LayerOff
from skerry.jail.filter import open_filter
from skerry.jail.probe import attempts, layers, probes

STOPPED_BY: dict[str, set[str]] = {
    "read-host-file": {"filesystem"},
    "write-root": {"filesystem"},
    "tcp": {"network", "seccomp", "landlock"},
    "abstract-socket": {"network", "seccomp", "landlock"},
    "user-namespace": {"user-namespace", "seccomp"},
    "signal": {"pid", "uid", "seccomp", "landlock"},
    "host-process": {"pid", "seccomp"},
    "same-keyring": {"keyring", "seccomp"},
    "host-shm": {"ipc", "seccomp"},
    "core-dump": {"core-dumps"},
    "same-uid": {"uid"},
    **{
        name: {"seccomp"}
        for name in layers.FILTERED
        if name not in ("tcp", "abstract-socket", "user-namespace")
    },
}
"""Attempt to the layers that each stop it alone."""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory that the jails' uids can traverse."""
    with tempfile.TemporaryDirectory(prefix="skerry-jail-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        # A session keyring of our own, so that "the same keyring" has one meaning.
        ctypes.CDLL(None).syscall(ctypes.c_long(250), 1, None)
        yield Path(name)


class Runner:
    """Runs the attempts in jails that lack some layers, each combination once."""

    def __init__(self, directory: Path, pool: identity.IdentityPool) -> None:
        self.base = probes.probe_jail(directory, pool.take("base"))
        self.pool = pool
        self.worked = cache(self.run)

    def run(self, without: frozenset[str]) -> frozenset[str]:
        """Return the attempts that worked."""
        used = identity.own() if "uid" in without else self.pool.take("x")
        accepted = without | {"cgroup"}
        jail = Confinement(
            self.base.root, used, binds=self.base.binds, accepted=accepted, without=without
        )
        with contextlib.ExitStack() as stack:
            a, b = (stack.enter_context(end) for end in probes.stream_pair())
            held_out = stack.enter_context(probes.bait())
            process = probes.start(jail, held_out, (a.fileno(), b.fileno()))
            worked, trouble = probes.finish(process)
        assert worked is not None, trouble
        return frozenset(worked)


@pytest.fixture(scope="module")
def runner(directory: Path, pool: identity.IdentityPool) -> Runner:
    """Runs the attempts."""
    return Runner(directory, pool)


def test_nothing_works_in_the_whole_jail(runner: Runner) -> None:
    """With every layer on, no attempt of any kind succeeds."""
    assert runner.worked(frozenset()) == frozenset()


@pytest.mark.parametrize("attempt", sorted(STOPPED_BY))
def test_attempt_succeeds_with_its_layers_off(attempt: str, runner: Runner) -> None:
    """The positive control: the attempt is a real one on this host."""
    assert attempt in runner.worked(frozenset(STOPPED_BY[attempt]))


@pytest.mark.parametrize(
    ("attempt", "layer"),
    sorted((attempt, layer) for attempt, stops in STOPPED_BY.items() for layer in stops),
)
def test_each_layer_stops_the_attempt_alone(attempt: str, layer: str, runner: Runner) -> None:
    """The layer holds by itself, with the others that would hide its failure off."""
    assert attempt not in runner.worked(frozenset(STOPPED_BY[attempt] - {layer}))


def private_memories() -> set[str]:
    """Return the System V memories of the host that have no key, by number and owner."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {
        f"{number} of {owner}" for key, number, *_, owner in (f[:8] for f in fields) if key == "0"
    }


def test_the_attempts_leave_nothing_on_the_host(runner: Runner) -> None:
    """What they make where no namespace takes it along is removed: it would hold its maker's
    keyring, and after 200 of those its uid has no jail any more."""
    before = private_memories()
    worked = runner.run(frozenset({"seccomp", "ipc"}))
    assert {"shmget", "mq-open"} <= worked, "the control: they made something"
    end = time.monotonic() + 5  # another run's may be there for a moment
    while (left := private_memories() - before) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == set()


def test_every_attempt_has_its_control() -> None:
    """No attempt is listed that no test makes; two have controls of their own below."""
    words = ["1", "0", "1", "n", "/f", "1", "1", "0", "0"]
    assert set(attempts.attempts(words)) == {*STOPPED_BY, "pass-descriptor", "new-privileges"}
    assert {layer for stops in STOPPED_BY.values() for layer in stops} <= set(LAYERS)


def test_an_ordinary_pair_carries_descriptors(runner: Runner) -> None:
    """The control for `pass-descriptor`: over a pair that is not restricted it works."""
    a, b = socket.socketpair()
    with a, b, probes.bait() as held_out:
        jail = Confinement(
            runner.base.root,
            runner.pool.take("pair"),
            binds=runner.base.binds,
            accepted=frozenset({"cgroup"}),
        )
        worked, _ = probes.finish(probes.start(jail, held_out, (a.fileno(), b.fileno())))
    assert worked == {"pass-descriptor"}


def test_an_unjailed_process_may_gain_privileges() -> None:
    """The control for `new-privileges` and `signal`: outside of a jail they work."""
    with probes.bait() as held_out:
        script = [sys.executable, "-I", "-S", attempts.__file__, *held_out, "0", "0"]
        out = subprocess.run(script, capture_output=True, check=True).stdout.decode().split()
    assert {"new-privileges", "signal", "read-host-file", "same-keyring"} <= set(out)


def test_probe_finds_every_layer_holding(directory: Path, pool: identity.IdentityPool) -> None:
    """On a host that has everything, `probe` reports every layer, and `require` agrees."""
    results = probes.probe(directory, pool.take("probe"))
    assert {result.layer for result in results} == set(LAYERS)
    failed = {result.layer for result in results if not result.held}
    assert failed <= {"cgroup", "descriptors", "landlock"}, results
    probes.require(results, frozenset(failed))


def test_probe_names_a_layer_that_does_not_hold(
    directory: Path, pool: identity.IdentityPool
) -> None:
    """A transport that carries descriptors, and a uid that is the host's own, are found."""
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(end) for end in socket.socketpair())
        results = {r.layer: r for r in probes.probe(directory, identity.own(), (a, b))}
    assert (results["descriptors"].held, results["descriptors"].detail) == (
        False,
        "pass-descriptor",
    )
    assert (results["uid"].held, results["uid"].detail) == (False, "same-uid")
    with pytest.raises(LayerOff, match=r"descriptors \(pass-descriptor\)"):
        probes.require(list(results.values()), frozenset({"uid", "cgroup", "landlock"}))


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("/usr/bin/missing", "no jail can be made here: bwrap: execvp"),
        # bwrap's own words where user namespaces are refused, as in a plain chroot.
        ("bwrap", "a plain chroot forbids them even to root"),
    ],
)
def test_a_probe_that_cannot_run_proves_nothing(
    tool: str,
    words: str,
    directory: Path,
    pool: identity.IdentityPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When no jail starts there is no result, but an error that says what to do."""
    if tool == "bwrap":
        script = directory / "bwrap"
        script.write_text(
            "#!/bin/sh\necho bwrap: No permissions to create new namespace >&2; exit 1"
        )
        script.chmod(0o755)
        monkeypatch.setattr(confinement, "BWRAP", str(script))
    else:
        monkeypatch.setattr(probes, "PYTHON", tool)
    with pytest.raises(JailError, match=words):
        probes.probe(directory, pool.take("none"))


def test_a_layer_is_left_out_only_by_name(runner: Runner) -> None:
    """`command` refuses what is off and not accepted; accepted by name, it is made."""
    used = runner.pool.take("refused")
    with pytest.raises(LayerOff, match="lacks cgroup, seccomp"):
        command(Confinement("/", used, without=frozenset({"seccomp"})), ["/x"], 3)
    accepted = frozenset({"cgroup", "seccomp"})
    words = command(
        Confinement("/", used, accepted=accepted, without=frozenset({"seccomp"})), ["/x"], 3
    )
    assert "--seccomp" not in words
    with pytest.raises(LayerOff, match="lacks uid"):
        command(Confinement("/", identity.own(), accepted=frozenset({"cgroup"})), ["/x"], 3)


def test_the_filter_descriptor_does_not_reach_the_program(runner: Runner) -> None:
    """The jailed program holds exactly the descriptors it was given."""
    code = "import os\nheld = []\nfor n in range(1024):\n  try: os.fstat(n); held.append(n)\n"
    code += "  except OSError: pass\nprint(held)"
    jail = Confinement(
        runner.base.root,
        runner.pool.take("fds"),
        binds=runner.base.binds,
        accepted=frozenset({"cgroup"}),
    )
    filter_fd = open_filter("qemu")
    with socket.socket() as given:
        argv = command(jail, [probes.PYTHON, "-I", "-S", "-c", code], filter_fd)
        fds = (filter_fd, given.fileno())
        out = subprocess.run(argv, pass_fds=fds, capture_output=True, check=True).stdout
        assert out.decode().strip() == str([0, 1, 2, given.fileno()])
