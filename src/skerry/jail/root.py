"""The read-only root of a jail: one program, what it loads, mount points, and nothing else.

The rules: a root is named by the digest of everything in it, appears at once (rename) and is
never changed after; only the one who made it could, and the one who uses it checks who that was.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from skerry.jail.errors import JailError

LOADER = Path("/lib64/ld-linux-x86-64.so.2")


def libraries(program: Path) -> set[Path]:
    """Return what the dynamic loader loads for a program or a module, the loader included.

    Raises JailError when a library is missing.
    """
    listing = subprocess.run(
        [LOADER, "--list", program], capture_output=True, text=True, check=False
    ).stdout
    found = {LOADER}
    for line in listing.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        where = (rest if arrow else name).split(" (")[0]
        if arrow and not where.startswith("/"):
            raise JailError(f"{program} needs {name}, which is not installed")
        if where.startswith("/"):
            found.add(Path(where))
    return found


def build(
    directory: Path,
    name: str,
    programs: Iterable[Path],
    files: Iterable[Path] = (),
    mount_points: Iterable[str] = (),
    links: Iterable[tuple[str, str]] = (),
) -> Path:
    """Return the root `directory/NAME-DIGEST`, made if it is not there.

    `programs` come with their libraries; everything keeps its path. A mount point that ends in `/`
    is a directory, any other an empty file; `links` are (path inside, target). `directory` must be
    such that the jails' uids can traverse it.

    Raises JailError for a missing file, and when the root that is there is not the caller's own.
    """
    wanted = set(files)
    for program in programs:
        wanted |= {program, *libraries(program)}
    contents = {path: _read(path) for path in wanted}
    digest = hashlib.sha256()
    for path in sorted(contents):
        digest.update(f"{path}\0{hashlib.sha256(contents[path]).hexdigest()}\0".encode())
    digest.update(repr((sorted(mount_points), sorted(links))).encode())
    return make(
        directory / f"{name}-{digest.hexdigest()[:16]}",
        lambda temporary: _fill(temporary, contents, mount_points, links),
    )


def make(root: Path, fill: Callable[[Path], None]) -> Path:
    """Return a root, made whole by `fill` in a directory of another name if it is not there.

    Its name must hold a digest of all that `fill` puts there. Raises JailError.
    """
    if not root.exists():
        root.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            fill(temporary)
            for folder, _, _ in os.walk(temporary, topdown=False):
                Path(folder).chmod(0o555)
            temporary.rename(root)
        except OSError as error:
            if not root.exists():  # else somebody made the same root at the same moment
                raise JailError(f"cannot make the jail's root {root}: {error}") from error
        finally:
            if temporary.exists():
                _remove(temporary)
    _check_owner(root)
    return root


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise JailError(f"the jail's root needs {path}: {error.strerror}") from error


def _fill(
    root: Path,
    contents: dict[Path, bytes],
    mount_points: Iterable[str],
    links: Iterable[tuple[str, str]],
) -> None:
    for path, content in contents.items():
        inside = root / str(path).lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_bytes(content)
        inside.chmod(0o555 if os.access(path, os.X_OK) else 0o444)
    for point in mount_points:
        inside = root / point.strip("/")
        if point.endswith("/"):
            inside.mkdir(parents=True, exist_ok=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch(mode=0o444)
    for inside_path, target in links:
        (root / inside_path.strip("/")).symlink_to(target)


def _remove(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o755)
    shutil.rmtree(root)


def _check_owner(root: Path) -> None:
    """Refuse a root that somebody else made or can change."""
    for path in (root, root.parent):
        status = path.lstat()
        if status.st_uid not in (0, os.geteuid()) or not stat.S_ISDIR(status.st_mode):
            raise JailError(f"{path} belongs to somebody else", fix="remove it")
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            raise JailError(f"{path} can be changed by others", fix="make it mode 0755")
