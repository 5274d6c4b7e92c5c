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
from skerry.image.cache import PACKAGES, workspace

PACKAGE_MAX = 1 << 30
"""Most bytes of one download; beyond it apt is ended and the build fails."""
FETCH_TIMEOUT_S = 900.0
COMMAND_TIMEOUT_S = 120.0

_UPDATE = "run apt-get update (as root, on Debian 12 or 13)"
_LISTS = Path("/var/lib/apt/lists")


class Package(msgspec.Struct, frozen=True):
    """One package as apt's lists describe it: size in bytes, SHA-256 of the `.deb`.

    `installed`: bytes once it is unpacked, in the lists' own words; `source`: what it is built of.
    """

    name: str
    version: str
    size: int
    sha256: str
    installed: int = 0
    architecture: str = "amd64"
    source: str = ""
    homepage: str = ""


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
            env=environment(),
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
    found = described(shown)
    if depends[0] not in found:
        raise SkerryError(f"apt's lists do not describe {depends[0]}", fix=_UPDATE)
    return found[depends[0]]


def described(untrusted_shown: str) -> dict[str, Package]:
    """Return the packages in the output of `apt-cache show`, each by name as it comes first.

    What the lists don't give a size and a hash of (a package that is only installed) is left out.
    """
    found: dict[str, Package] = {}
    for paragraph in untrusted_shown.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line)
        try:
            one = Package(
                fields["Package"],
                fields["Version"],
                int(fields["Size"]),
                fields["SHA256"],
                int(fields.get("Installed-Size", "0")) << 10,
                fields.get("Architecture", "amd64"),
                fields.get("Source", fields["Package"]),
                fields.get("Homepage", ""),
            )
        except (KeyError, ValueError):
            continue
        found.setdefault(one.name, one)
    return found


def lists_stamp() -> int:
    """Return a number that changes when apt's lists do."""
    return _LISTS.stat().st_mtime_ns if _LISTS.is_dir() else 0


def resolve_cached(cache: Path, meta: str) -> Package:
    """Return what `resolve` would, from the cache while apt's lists are those it came from.

    Call it, as all that uses the cache's packages, under the cache's lock.
    """
    note = cache / PACKAGES / f"behind-{meta}.json"
    stamp = lists_stamp()
    with contextlib.suppress(OSError, msgspec.DecodeError):
        held = msgspec.json.decode(note.read_bytes(), type=_Resolved)
        if held.stamp == stamp:
            return held.package
    found = resolve(meta)
    note.write_bytes(msgspec.json.encode(_Resolved(stamp, found)))
    return found


def forget_answers(cache: Path) -> None:
    """Let apt be asked anew, whatever the cache says that it answered."""
    for note in (cache / PACKAGES).glob("*.json"):
        note.unlink()


def fetch(cache: Path, package: Package, progress: Callable[[float], None]) -> Path:
    """Return the `.deb`, downloaded if the cache does not hold it; its hash is checked each time.

    `progress` gets the fraction that is here, 0 to 1. Raises `SkerryError`.
    """
    return fetch_all(cache, [package], progress)[0]


def fetch_all(
    cache: Path, packages: Sequence[Package], progress: Callable[[float], None]
) -> list[Path]:
    """Return the `.deb` of each package, as `fetch` does; what is missing comes in one download."""
    shelf = cache / PACKAGES
    held = [_place(shelf, package) for package in packages]
    pairs = zip(packages, held, strict=True)
    absent = list(dict.fromkeys(p for p, path in pairs if not path.exists()))
    if absent:
        with workspace(cache) as work:
            _download(work, absent, progress)
            for package in absent:
                found = list(work.glob(f"{package.name}_*.deb"))
                if len(found) != 1:
                    raise SkerryError(f"apt-get download left {len(found)} files of {package.name}")
                found[0].chmod(0o444)
                found[0].rename(_place(shelf, package))
    for package, path in zip(packages, held, strict=True):
        if path.stat().st_size != package.size or store.sha256(path) != package.sha256:
            path.unlink()
            raise SkerryError(
                f"{path.name} is not what apt's signed lists say; it was removed",
                fix="build again; if it happens twice, run apt-get update (as root)",
            )
    progress(1.0)
    return held


def _place(shelf: Path, package: Package) -> Path:
    return shelf / f"{package.name}_{package.version.replace(':', '%3a')}.deb"


def _download(work: Path, packages: Sequence[Package], progress: Callable[[float], None]) -> None:
    total = sum(package.size for package in packages) or 1
    names = packages[0].name if len(packages) == 1 else f"{len(packages)} packages"
    argv = ["apt-get", "-q", "download", *(f"{p.name}={p.version}" for p in packages)]
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
            argv, cwd=work, env=environment(), stdin=subprocess.DEVNULL, stdout=words, stderr=words
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
                        raise SkerryError(f"download of {names} took too long") from None
                    progress(min(here / total, 1.0))
        finally:
            process.kill()
    if code:
        raise SkerryError(
            f"cannot download {names}: {_last_line(log.read_bytes())}",
            fix="check the network; run apt-get update (as root) when the lists are old",
        )


def environment() -> dict[str, str]:
    """Return the environment of a tool: ours, in a language whose words are known."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _last_line(untrusted_words: bytes) -> str:
    lines = untrusted_words.decode("utf-8", "replace").strip().splitlines()
    return ascii(lines[-1][:300])[1:-1] if lines else "no message"
