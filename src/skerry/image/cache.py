"""The directory of a cache of images: who may write it, one builder at a time, and its workspaces.

The rule: what lies in a cache was put there by this user or root, for nobody else can write it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from skerry.errors import SkerryError

PACKAGES, BUILT, NAMES = "packages", "built", "names"
"""What a cache holds; `store` says what of."""


@contextlib.contextmanager
def workspace(cache: Path) -> Iterator[Path]:
    """Give a temporary directory on the cache's file system, removed afterwards."""
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=cache))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Make the cache if need be and hold its lock; a second builder waits here."""
    try:
        _make(cache)
        check_owner(cache)
        for place in (PACKAGES, BUILT, NAMES):
            _make(cache / place)
        descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SkerryError(
            f"cannot write the image cache {cache}: {error.strerror}",
            fix="name another with --cache DIR or SKERRY_HOME",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A builder that was killed leaves its workspace; under the lock nobody else has one.
        for left in cache.glob(".work-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def check_owner(cache: Path) -> None:
    """Refuse a cache that somebody else could have filled: they would choose our kernels.

    Raises `SkerryError` unless the cache and its parent belong to this user or root, and nobody
    else may write them (a sticky parent such as /tmp will do).
    """
    for path in (cache, cache.parent):
        facts = path.stat()
        shared = facts.st_mode & 0o022 and not (path != cache and facts.st_mode & stat.S_ISVTX)
        if facts.st_uid not in (0, os.geteuid()) or shared:
            raise SkerryError(
                f"{path} may be written by others, so images in {cache} can't be trusted",
                fix="name another cache with --cache DIR or SKERRY_HOME",
            )


def _make(cache: Path) -> None:
    """Make a directory and its parents so that every uid can enter them, whatever the umask."""
    if not cache.is_dir():
        _make(cache.parent)
        with contextlib.suppress(FileExistsError):  # another builder was first
            cache.mkdir()
            cache.chmod(0o755)
