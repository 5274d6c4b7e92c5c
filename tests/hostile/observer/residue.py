"""Law 6, after an attack and the attacker's end: its mark must be nowhere that outlives it.

The rule: searched is what the host can see, whole: every file of the node's directory and of
/dev/shm, every memory without a name that a process of the node holds, and, of a domain with
another label that starts afterwards, all its memory. The mate is left out: the policy let it read
the mark.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.hostile.observer import processes
from tests.hostile.observer.neighbours import NoAnswer, Node, Scene
from tests.hostile.observer.outcome import Finding, Seen, Unseen

SHM = Path("/dev/shm")
_PIECE = 4 << 20


def left(node: Node, scene: Scene, supervisor: int) -> Seen:
    """Release the disk of an attacker that has ended, and say where its mark still is."""
    try:
        if scene.disk and (done := node.ask("disk", "release", scene.disk)).returncode:
            why = done.stderr.decode(errors="replace").strip()[:200]
            yield Finding("hindered", f"its disk can't be released: {why}")
    except NoAnswer as none:
        yield Finding("hindered", str(none))
    mark = scene.mark.encode()
    for folder in (Path(scene.home), SHM):
        for path in files(folder, mark):
            yield Finding("reached", f"the attacker's mark is in {path}")
    pids = [
        pid
        for pid in processes.below(supervisor)
        if f" -name {scene.mate} " not in processes.command_line(pid)
    ]
    yield from memories(pids, mark)


def inherited(node: Node, scene: Scene, supervisor: int) -> Seen:
    """Start a domain with another label, and say whether the mark is in its memory; end it."""
    try:
        for words in (("start", scene.heir), ("exec", scene.heir, "--", "true")):
            if (done := node.ask(*words)).returncode:
                why = done.stderr.decode(errors="replace").strip()[:200]
                yield Finding("hindered", f"{scene.heir} does not start: {why}")
                return
        yield from of_heir(scene, processes.qemu_of(supervisor, scene.heir))
        node.ask("kill", scene.heir)
    except NoAnswer as none:
        yield Finding("hindered", str(none))


def of_heir(scene: Scene, pid: int) -> Seen:
    """Say whether the mark is in a QEMU's memory, where its own kernel's name must be."""
    mark, own = scene.mark.encode(), b"Linux version"
    found = processes.held_texts(pid, [mark, own])
    if found is None or own not in found:
        yield Unseen(f"memory of {scene.heir}")
    elif mark in found:
        yield Finding("reached", f"the attacker's mark is in the memory of {scene.heir}'s QEMU")


def files(folder: Path, text: bytes) -> Iterator[Path]:
    """Yield the files below a folder that hold a text."""
    for where, _, names in os.walk(folder):
        for path in (Path(where) / name for name in names):
            if path.is_file() and not path.is_symlink() and _holds(path, text):
                yield path


def memories(pids: Iterable[int], text: bytes) -> Seen:
    """Say which memories without a name that some processes hold have a text."""
    seen: set[int] = set()
    for pid in pids:
        try:
            links = list(Path(f"/proc/{pid}/fd").iterdir())
        except PermissionError:
            yield Unseen("memories that another uid's process holds")
            continue
        except OSError:
            continue
        for link in links:
            if (inode := _memory(link)) and inode not in seen:
                seen.add(inode)
                if _holds(link, text):
                    who = processes.command_line(pid)[:60]
                    yield Finding("reached", f"the attacker's mark is in a memory that {who} holds")


def _memory(link: Path) -> int:
    """Return the inode of a descriptor's memory, 0 if it is none."""
    try:
        return link.stat().st_ino if str(link.readlink()).startswith("/memfd:") else 0
    except OSError:
        return 0


def _holds(path: Path, text: bytes) -> bool:
    """Say whether a file holds a text; one that has gone does not. Holes are passed over."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return any(text in piece for piece in _pieces(descriptor, len(text)))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _pieces(descriptor: int, overlap: int) -> Iterator[bytes]:
    size, at = os.fstat(descriptor).st_size, 0
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # no more data, only a hole
            return
        end = os.lseek(descriptor, at, os.SEEK_HOLE)
        while at < end:
            piece = os.pread(descriptor, min(_PIECE, end - at) + overlap, at)
            if not piece:
                return
            yield piece
            at += _PIECE
        at = end
