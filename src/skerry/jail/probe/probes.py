"""The escape probes: what gets out of a throw-away jail made like every other.

The rules: the probes run before any domain starts; a layer whose attempts work is named; a probe
that does not run proves nothing, so its layers count as not held.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from skerry.jail import cgroup, filter, root
from skerry.jail.confinement import Confinement, Limits, command
from skerry.jail.errors import JailError, LayerOff
from skerry.jail.identity import Identity
from skerry.jail.probe.layers import JUDGED, RUNS

PYTHON = "/usr/bin/python3"
SECONDS = 10.0
"""How long a probe may take before it counts as failed."""
SO_PASSRIGHTS = 83
_LINKS = (("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin"))
_HOST_FILE = "/etc/passwd"

_NO_NAMESPACES = (
    "allow user namespaces (kernel.unprivileged_userns_clone, AppArmor); a plain chroot forbids "
    "them even to root: enter its root by unshare -m and pivot_root instead"
)

_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class LayerResult:
    """Whether a layer held; `detail` names what got through, or what is missing."""

    layer: str
    held: bool
    detail: str = ""


def stream_pair() -> tuple[socket.socket, socket.socket]:
    """Return a Unix pair with descriptor passing off, as far as the kernel can (6.16)."""
    pair = socket.socketpair()
    for end in pair:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    return pair


@contextlib.contextmanager
def bait() -> Iterator[list[str]]:
    """Hold out on the host what the attempts reach for; yield their first arguments."""
    name, key = f"skerry-probe-{secrets.token_hex(8)}", secrets.randbits(30) | 1
    shared = _libc.shmget(key, 4096, 0o1666)
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        tcp.bind(("127.0.0.1", 0))
        abstract.bind(f"\0{name}")
        tcp.listen()
        abstract.listen()
        keyring = _libc.syscall(ctypes.c_long(250), 0, ctypes.c_long(-3), 0)
        host = [str(os.getpid()), str(os.getuid()), str(tcp.getsockname()[1]), name]
        try:
            yield [*host, _HOST_FILE, str(keyring), str(key)]
        finally:
            _libc.shmctl(shared, 0, None)


def start(jail: Confinement, held_out: list[str], pair: tuple[int, int]) -> subprocess.Popen[bytes]:
    """Start the attempts in a jail made by `probe_jail`."""
    filter_fd = filter.open_filter(jail.profile)
    script = Path(__file__).with_name("attempts.py").read_text()
    words = [*held_out, str(pair[0]), str(pair[1])]
    argv = command(jail, [PYTHON, "-I", "-S", "-c", script, *words], filter_fd)
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(filter_fd, *pair),
        )
    finally:
        os.close(filter_fd)


def finish(process: subprocess.Popen[bytes]) -> tuple[set[str] | None, str]:
    """Return what worked, None when the attempts did not run, and the last words of the jail."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    words = out.decode(errors="replace").split()
    last = err.decode(errors="replace").strip().splitlines()[-1:]
    if process.returncode or words[:1] != ["done"]:
        return None, last[0] if last else f"the probe ended with {process.returncode}"
    return set(words[1:]), ""


def probe_jail(directory: Path, identity: Identity, cgroups: tuple[str, ...] = ()) -> Confinement:
    """Return a jail whose root holds an interpreter (all of /usr, read-only), in `directory`."""
    made = root.build(directory, "probe", (), (), ("usr/",), _LINKS)
    return Confinement(str(made), identity, binds=(("/usr", "/usr"),), cgroups=cgroups)


def probe(
    directory: Path,
    identity: Identity,
    pair: tuple[socket.socket, socket.socket] | None = None,
    profile: str = "qemu",
) -> list[LayerResult]:
    """Try to get out of a throw-away jail and say for each layer whether it held. Blocks.

    `directory` as for `root.build`; `identity` must be fresh; `pair` is a stream of the transport
    that channels will use, by default `stream_pair`. Raises JailError when a tool is
    missing or no jail can be made at all.
    """
    results: list[LayerResult] = []
    cgroups: tuple[str, ...] = ()
    try:
        cgroups = cgroup.create("probe", Limits(memory=1 << 30, pids=64, cpu=100))
        results.append(LayerResult("cgroup", True))
    except LayerOff as error:
        results.append(LayerResult("cgroup", False, error.message))
    base = probe_jail(directory, identity, cgroups)
    ends = pair or stream_pair()
    fds = (ends[0].fileno(), ends[1].fileno())
    try:
        with bait() as held_out:
            running = {}
            for run, off in RUNS.items():
                everything = off | {"cgroup", "uid"}
                jail = replace(base, profile=profile, accepted=everything, without=off)
                running[run] = start(jail, held_out, fds)
            worked = {run: finish(process) for run, process in running.items()}
    finally:
        cgroup.remove(cgroups)
        if pair is None:
            for end in ends:
                end.close()
    if all(got is None for got, _ in worked.values()):
        trouble = worked["full"][1]
        if "namespace" in trouble:
            raise JailError(f"no jail can be made here: {trouble}", fix=_NO_NAMESPACES)
        raise JailError(f"no jail can be made here: {trouble}")
    for layer in JUDGED:
        got, trouble = worked[layer.run]
        through = sorted(got.intersection(layer.attempts)) if got is not None else []
        detail = trouble or ", ".join(through)
        results.append(LayerResult(layer.name, got is not None and not through, detail))
    return results


def require(results: list[LayerResult], accepted: frozenset[str]) -> None:
    """Raise LayerOff naming every layer that did not hold and is not accepted."""
    failed = [r for r in results if not r.held and r.layer not in accepted]
    if failed:
        words = "; ".join(f"{r.layer} ({r.detail})" for r in failed)
        layers = sorted(accepted.union(r.layer for r in failed))
        names = ", ".join(f'"{layer}"' for layer in layers)
        raise LayerOff(
            f"layers of the jail do not hold: {words}",
            fix=f"provide them, or accept their absence with [jail] accept-missing = [{names}] "
            "in the system file",
        )
