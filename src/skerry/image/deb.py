"""What is in a Debian package, read as a stream: nothing is unpacked to disk and no script is run.

The rules: a member's size is counted before its bytes are read; what the packed stream may hold in
all is bounded by the size that apt's signed lists say it has once installed; what a package gives
to another user or group than root lends nobody root's rights, though in an image all is root's.
"""

from __future__ import annotations

import io
import re
import stat
import subprocess
import tarfile
import threading
from functools import partial
from pathlib import Path
from typing import IO

from skerry.errors import SkerryError
from skerry.image import cpio, package
from skerry.image.package import Package
from skerry.image.tree import APPLETS, Tree

SLACK = 8 << 20
"""Bytes that a package may hold beyond twice its installed size; beyond that it is refused."""


class _Bounded(io.RawIOBase):
    """A stream that ends in an error when it gives more than it may."""

    def __init__(self, stream: IO[bytes], limit: int, name: str) -> None:
        self._stream, self._left, self._name = stream, limit, name

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes, at most 64 KiB."""
        wanted = 1 << 16 if size is None or size < 0 else min(size, 1 << 16)
        data = self._stream.read(wanted)
        self._left -= len(data)
        if self._left < 0:
            raise SkerryError(f"the package {self._name} holds more than apt's lists say")
        return data


def add_to(tree: Tree, deb: Path, facts: Package) -> None:
    """Put a package's files into a tree, but for those that the tree does not want.

    Raises `SkerryError` for a damaged package, one that is larger than the lists say, and for a
    member that an image can't have (a device, a path that leads out).
    """
    argv = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise package.missing("dpkg-deb", "dpkg") from error
    timer = threading.Timer(package.COMMAND_TIMEOUT_S, process.kill)
    timer.start()
    assert process.stdout is not None
    limit = 2 * facts.installed + SLACK
    try:
        with process.stdout as stream:
            bounded = _Bounded(stream, limit, facts.name)
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                for member in archive:
                    _add_member(tree, archive, member, facts.name)
                # The library takes a head that it can't read for the end; behind that is padding.
                whole = all(not any(rest) for rest in iter(partial(_rest, archive), b""))
            while bounded.read():  # so that dpkg-deb ends by itself
                pass
        damaged = process.wait() != 0 or not whole
    except (tarfile.TarError, EOFError, ValueError):
        damaged = True
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    if damaged:
        raise _damaged(deb)


def files(deb: Path, facts: Package) -> dict[str, bytes]:
    """Return the plain files of a package by their paths in a merged `/usr`; raises as `add_to`."""
    tree = Tree(2 * facts.installed + SLACK, merged=True)
    add_to(tree, deb, facts)
    return {
        path: one.entry.data for path, one in tree.placed.items() if stat.S_ISREG(one.entry.mode)
    }


def made_at(deb: Path) -> int:
    """Return when a package was made, in seconds since the epoch. Raises `SkerryError`.

    It stands in the head of the archive's first member; see `ar(5)`.
    """
    with deb.open("rb") as file:
        found = re.fullmatch(rb"!<arch>\n.{16}([0-9]{1,10}) {2,11}", file.read(36), re.DOTALL)
    if found is None:
        raise _damaged(deb)
    return int(found[1])


def _rest(archive: tarfile.TarFile) -> bytes:
    assert archive.fileobj is not None
    return archive.fileobj.read(tarfile.RECORDSIZE)


def _damaged(deb: Path) -> SkerryError:
    return SkerryError(f"the package {deb.name} is damaged", fix=f"remove {deb} and build again")


def _add_member(tree: Tree, archive: tarfile.TarFile, member: tarfile.TarInfo, origin: str) -> None:
    if member.size < 0:  # an extended head may say so, and it would be counted
        raise ValueError("a negative size")
    path = tree.path(member.name)
    if not tree.wants(path):
        return
    mode = _mode(member)
    if member.isdir():
        tree.add(cpio.directory(path, mode=mode), origin)
    elif member.issym():
        tree.reserve(len(member.linkname), f"/{path} of {origin}")
        tree.add(cpio.link(path, member.linkname), origin, over=APPLETS)
    elif member.islnk():
        held = tree.placed.get(tree.path(member.linkname))
        if held is None or held.origin != origin or not stat.S_ISREG(held.entry.mode):
            raise SkerryError(f"/{path} of {origin} is a second name of a file that is not there")
        tree.reserve(len(held.entry.data), f"/{path} of {origin}")
        tree.add(
            cpio.file(path, held.entry.data, mode=held.entry.mode & 0o7777), origin, over=APPLETS
        )
    elif member.isreg():
        tree.reserve(member.size, f"/{path} of {origin}")
        content = archive.extractfile(member)
        data = content.read() if content is not None else b""
        tree.add(cpio.file(path, data, mode=mode), origin, over=APPLETS)
    else:
        raise SkerryError(f"/{path} of {origin} is a device or a pipe, which no image has")


def _mode(member: tarfile.TarInfo) -> int:
    """Return a member's mode, with the set-id bits only where the owner stays who he is."""
    mode = member.mode & 0o7777
    if member.uid or member.uname not in ("", "root"):
        mode &= ~stat.S_ISUID
    if member.gid or member.gname not in ("", "root"):
        mode &= ~stat.S_ISGID
    return mode
