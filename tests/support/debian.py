"""Debian packages as raw material of tests: unpacked into a cache, never installed.

The rule this module keeps: what stands in the cache is whole; it was made aside under a lock and
renamed. Works as root and as an ordinary user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from skerry.errors import SkerryError
from skerry.image import package
from skerry.image.cache import locked, workspace
from tests.support.machines import cache


def cached(name: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """Return a directory that `make` filled, now or in an earlier run with the same recipe.

    `make` must not call this: there is one lock.
    """
    shelf = _shelf()
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    made = shelf / f"{name}-{key}"
    if made.is_dir():
        return made
    with locked(shelf):
        if not made.is_dir():
            with workspace(shelf) as work:
                make(work)
                work.rename(made)
                made.chmod(0o755)
    return made


def fetch(name: str) -> Path:
    """Return the `.deb` of that name, downloaded unless it is here; for `make` of `cached`."""
    return package.fetch(_shelf(), _described(name), _ignore)


def script(deb: Path, name: str) -> str:
    """Return the text of a maintainer script, such as `postinst`; it is not run."""
    return package.run(["dpkg-deb", "-I", str(deb), name], package="dpkg").decode()


def unpacked(name: str) -> Path:
    """Return the directory of one unpacked package."""
    return cached(name, "unpacked", lambda work: unpack(fetch(name), work))


def unpack(deb: Path, target: Path) -> None:
    """Unpack a package that is trusted into a directory; runs none of its scripts."""
    package.run(["dpkg-deb", "-x", str(deb), str(target)], package="dpkg")


def _shelf() -> Path:
    return cache() / "policies"


def _described(name: str) -> package.Package:
    update = "run apt-get update (as root, on Debian 12 or 13)"
    argv = ["apt-cache", "show", "--no-all-versions", name]
    shown = package.run(argv, package="apt", fix=update).decode()
    fields = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    if not {"Version", "Size", "SHA256"} <= fields.keys():
        raise SkerryError(f"apt's lists do not describe {name}", fix=update)
    return package.Package(name, fields["Version"], int(fields["Size"]), fields["SHA256"])


def _ignore(progress: float) -> None:
    pass
