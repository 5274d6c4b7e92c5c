"""Debian packages as raw material: found by apt, checked by hash, unpacked, never installed.

The trust anchor is apt's: the hash of a package comes from lists that apt verified by signature.
Nothing here needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from skerry.errors import SkerryError
from skerry.image import store

PACKAGE_MAX = 1 << 30
"""Most bytes of one download; beyond it apt is ended and the build fails."""
FETCH_TIMEOUT_S = 900.0
COMMAND_TIMEOUT_S = 120.0

_UPDATE = "run apt-get update (as root, on Debian 12 or 13)"
_LISTS = Path("/var/lib/apt/lists")


class Package(msgspec.Struct, frozen=True):
    """One package as apt's lists describe it: size in bytes, SHA-256 of the `.deb`."""

    name: str
    version: str
    size: int
    sha256: str


class _Resolved(msgspec.Struct, frozen=True):
    stamp: int
    package: Package


def run(argv: Sequence[str], *, package: str, fix: str = "") -> bytes:
    """Run a tool and return its output; `package` is the Debian package that has the tool.

    Raises `SkerryError` naming the package when the tool is missing, or with the tool's last
    words and `fix` when it fails or takes longer than two minutes.
    """
    try:
        done = subprocess.run(
            argv,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise missing(argv[0], package) from error
    except subprocess.TimeoutExpired as error:
        raise SkerryError(f"`{' '.join(argv)}` did not end in {COMMAND_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise SkerryError(f"`{' '.join(argv)}` failed: {_last_line(done.stderr)}", fix=fix)
    return done.stdout


def missing(tool: str, package: str) -> SkerryError:
    """Return the error for a tool that is not on this machine."""
    return SkerryError(f"{tool} is not on this machine", fix=f"apt-get install {package}")


def resolve(meta: str) -> Package:
    """Return the one real package behind a meta package such as `linux-image-cloud-amd64`.

    Raises `SkerryError` when apt's lists do not hold it.
    """
    lines = (
        run(["apt-cache", "depends", "--important", meta], package="apt", fix=_UPDATE)
        .decode()
        .splitlines()
    )
    depends = [line.split()[1] for line in lines if line.strip().startswith("Depends:")]
    if len(depends) != 1:
        raise SkerryError(
            f"apt's lists name no single package behind {meta}",
            fix=_UPDATE,
        )
    shown = run(
        ["apt-cache", "show", "--no-all-versions", depends[0]], package="apt", fix=_UPDATE
    ).decode()
    fields = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    try:
        return Package(depends[0], fields["Version"], int(fields["Size"]), fields["SHA256"])
    except (KeyError, ValueError) as error:
        raise SkerryError(f"apt's lists do not describe {depends[0]}", fix=_UPDATE) from error


def resolve_cached(cache: Path, meta: str) -> Package:
    """Return what `resolve` would, from the cache while apt's lists are those it came from."""
    note = cache / "packages" / f"{meta}.json"
    stamp = _LISTS.stat().st_mtime_ns if _LISTS.is_dir() else 0
    with contextlib.suppress(OSError, msgspec.DecodeError):
        held = msgspec.json.decode(note.read_bytes(), type=_Resolved)
        if held.stamp == stamp:
            return held.package
    found = resolve(meta)
    note.parent.mkdir(exist_ok=True)
    note.write_bytes(msgspec.json.encode(_Resolved(stamp, found)))
    return found


def fetch(cache: Path, package: Package, progress: Callable[[float], None]) -> Path:
    """Return the `.deb`, downloaded if the cache does not hold it; its hash is checked each time.

    `progress` gets the fraction that is here, 0 to 1. Raises `SkerryError`.
    """
    shelf = cache / "packages"
    shelf.mkdir(exist_ok=True)
    held = shelf / f"{package.name}_{package.version.replace(':', '%3a')}.deb"
    if not held.exists():
        with store.workspace(cache) as work:
            _download(work, package, progress)
            found = list(work.glob("*.deb"))
            if len(found) != 1:
                raise SkerryError(f"apt-get download left {len(found)} files instead of one")
            found[0].chmod(0o444)
            found[0].rename(held)
    if held.stat().st_size != package.size or store.sha256(held) != package.sha256:
        held.unlink()
        raise SkerryError(
            f"{held.name} is not what apt's signed lists say; it was removed",
            fix="build again; if it happens twice, run apt-get update (as root)",
        )
    progress(1.0)
    return held


def unpack(deb: Path, target: Path) -> None:
    """Unpack a package into a directory; runs none of its scripts."""
    run(["dpkg-deb", "-x", str(deb), str(target)], package="dpkg")


def _download(work: Path, package: Package, progress: Callable[[float], None]) -> None:
    argv = ["apt-get", "-q", "download", f"{package.name}={package.version}"]
    if os.geteuid() == 0:
        # apt's own user can't write into a private directory; the hash is what counts.
        argv[1:1] = ["-o", "APT::Sandbox::User=root"]
    if shutil.which(argv[0]) is None:
        raise missing(argv[0], "apt")
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    log = work / "log"
    with (
        log.open("wb") as words,
        subprocess.Popen(
            argv, cwd=work, env=_environment(), stdin=subprocess.DEVNULL, stdout=words, stderr=words
        ) as process,
    ):
        try:
            while True:
                try:
                    code = process.wait(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    here = sum(f.stat().st_size for f in work.glob("*.deb*"))
                    if here > PACKAGE_MAX or time.monotonic() > deadline:
                        raise SkerryError(f"download of {package.name} took too long") from None
                    progress(min(here / package.size, 1.0))
        finally:
            process.kill()
    if code:
        raise SkerryError(
            f"cannot download {package.name}: {_last_line(log.read_bytes())}",
            fix="check the network; run apt-get update (as root) when the lists are old",
        )


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _last_line(untrusted_words: bytes) -> str:
    lines = untrusted_words.decode("utf-8", "replace").strip().splitlines()
    return ascii(lines[-1][:300])[1:-1] if lines else "no message"
