"""Which packages an image is made of: what a recipe names, and all that this needs.

apt itself computes it, as if for a machine on which nothing is installed: what a package
recommends is left out, and what the recipe excludes counts as there. The answer holds name,
version, size and hash of each package; apt verified the lists that it comes from by signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from skerry.errors import InputError, Problem, SkerryError
from skerry.image import package
from skerry.image.cache import PACKAGES, workspace
from skerry.image.package import Package
from skerry.image.recipe import Recipe

_INST = re.compile(r"Inst (\S+) (?:\[\S+\] )?\((\S+) ")
_MISSING = re.compile(
    r"E: (?:Unable to locate package (\S+)|Package '([^']+)' has no installation candidate"
    r"|Version '[^']+' for '([^']+)' was not found)"
)
_EXCLUDED = """Package: {name}
Status: install ok installed
Architecture: {architecture}
Version: 9999:0
Maintainer: none
Description: excluded

"""


class _Held(msgspec.Struct, frozen=True):
    stamp: int
    packages: tuple[Package, ...]


def closure(cache: Path, recipe: Recipe) -> tuple[Package, ...]:
    """Return the packages of a recipe, sorted by name; none if it names none.

    Asked of apt only when its lists have changed since the last time; call it under the cache's
    lock. Raises `InputError` with the line of each package that does not exist, `SkerryError` when
    apt finds no way or there are more than the recipe's limit.
    """
    if not recipe.packages:
        return ()
    asked = repr((recipe.packages, recipe.exclude)).encode()
    note = cache / PACKAGES / f"closure-{hashlib.sha256(asked).hexdigest()[:16]}.json"
    stamp = package.lists_stamp()
    found: tuple[Package, ...] = ()
    with contextlib.suppress(OSError, msgspec.DecodeError):
        held = msgspec.json.decode(note.read_bytes(), type=_Held)
        found = held.packages if held.stamp == stamp else ()
    if not found:
        found = _resolve(cache, recipe)
        note.write_bytes(msgspec.json.encode(_Held(stamp, found)))
    if len(found) > recipe.max_packages:
        raise SkerryError(
            f"{recipe.name} needs {len(found)} packages, over its limit of {recipe.max_packages}",
            fix="raise limits.packages, or exclude some",
        )
    return found


def _resolve(cache: Path, recipe: Recipe) -> tuple[Package, ...]:
    with workspace(cache) as work:
        status = work / "status"
        architecture = package.run(["dpkg", "--print-architecture"], package="dpkg").decode()
        status.write_text(
            "".join(
                _EXCLUDED.format(name=name, architecture=architecture.strip())
                for name in recipe.exclude
            )
        )
        versions = _simulate(status, recipe)
        status.write_text("")
        wanted = [f"{name}={version}" for name, version in versions.items()]
        shown = _apt(status, "apt-cache", "show", *wanted, *recipe.exclude).stdout
    found = package.described(shown)
    _check(recipe, versions, found)
    lacking = [name for name, version in versions.items() if found[name].version != version]
    if lacking:
        raise SkerryError(f"apt's lists do not describe {', '.join(lacking)}", fix=_FIX)
    return tuple(found[name] for name in sorted(versions))


_FIX = "run apt-get update (as root, on Debian 12 or 13)"


def _simulate(status: Path, recipe: Recipe) -> dict[str, str]:
    """Return the version of each package that apt would install."""
    done = _apt(status, "apt-get", "-q", "-s", "install", *recipe.packages)
    missing = {next(filter(None, words)) for words in _MISSING.findall(done.stderr)}
    if missing:
        raise InputError([_no_package(recipe, name) for name in sorted(missing)])
    if done.returncode:
        words = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
        reasons = [w for w in words if " Depends: " in w or w.startswith(("Depends:", "E:"))]
        raise SkerryError(
            f"apt finds no packages for {recipe.name}: {ascii(' / '.join(reasons)[:400])[1:-1]}",
            fix=_FIX if not reasons else "see what excludes or needs it",
        )
    return {name.partition(":")[0]: version for name, version in _INST.findall(done.stdout)}


def _check(recipe: Recipe, versions: Mapping[str, str], found: Mapping[str, Package]) -> None:
    """Refuse a name that is no package, or another one's, and one the lists say nothing of."""
    problems = [
        _no_package(recipe, name)
        for name in (*(p.partition("=")[0] for p in recipe.packages), *recipe.exclude)
        if name not in found or (name not in versions and name not in recipe.exclude)
    ]
    if problems:
        raise InputError(problems)
    lacking = sorted(versions.keys() - found.keys())
    if lacking:
        raise SkerryError(f"apt's lists do not describe {', '.join(lacking)}", fix=_FIX)


def _no_package(recipe: Recipe, name: str) -> Problem:
    message = f"apt's lists hold no package {name!a}; {_FIX} if they are old"
    return Problem(str(recipe.path), recipe.line_of_package(name), message)


def _apt(status: Path, tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    options = {
        "Dir::State::status": str(status),
        "Debug::NoLocking": "true",
        "APT::Install-Recommends": "false",
        "APT::Install-Suggests": "false",
        "APT::Cmd::Pattern-Only": "true",
    }
    argv: Sequence[str] = [
        tool,
        *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
        *words,
    ]
    try:
        return subprocess.run(
            argv,
            env=package.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=package.COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise package.missing(tool, "apt") from error
    except subprocess.TimeoutExpired as error:
        raise SkerryError(f"{tool} did not end in {package.COMMAND_TIMEOUT_S:.0f} s") from error
