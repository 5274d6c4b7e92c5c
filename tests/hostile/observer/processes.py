"""The attacker's QEMU and the node's own processes, seen from the host by /proc alone.

The rule: what a jailed QEMU is and holds is taken down before the attack, and whatever it has
beside that afterwards it got from somewhere else. An ordinary user may not look into another uid's
process: then that is said, and not passed over.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from tests.hostile.observer.outcome import Finding

CORE = re.compile(r"skerry\.(control\.service|supervisor\.main|audit\.service|policy\.service)")
"""The processes that serve everybody; the rest of a node's serves one domain or one channel."""

PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/dev/mqueue")
"""Where anybody on the host may make a file."""
DEPTH = 3
"""How deep below them is looked."""

_PIECE = 8 << 20
_GIVEN = re.compile(r"(socket|pipe):\[\d+\]|/.*")
_PROC = Path("/proc")


class Likeness(msgspec.Struct, frozen=True):
    """What a QEMU in its jail is: its uids, rights, namespaces, and what it holds of others.

    All of these are a thread's own in Linux. Where its threads differ, a text has what each is.
    """

    uids: str
    rights: Mapping[str, str]
    spaces: Mapping[str, str]
    given: frozenset[str] | None
    """Sockets, pipes and files; None where we may not look."""


WANTED = {"CapEff": "0" * 16, "CapPrm": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
"""What the jail leaves a QEMU, as /proc/PID/status says it."""


def command_line(pid: int) -> str:
    """Return the words of a process, nothing if it has ended."""
    try:
        return (_PROC / str(pid) / "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def below(pid: int) -> list[int]:
    """Return a process and all that it started, parents first; nothing if it has ended."""
    found = [pid] if command_line(pid) else []
    for parent in found:
        for task in _listed(_PROC / str(parent) / "task"):
            try:
                found += map(int, (task / "children").read_text().split())
            except OSError:
                continue
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def qemu_of(supervisor: int, domain: str) -> int:
    """Return a domain's QEMU, 0 if there is none."""
    wanted = f" -name {domain} "
    for pid in reversed(below(supervisor)):  # its jail has the same words, and came before it
        words = command_line(pid)
        if words.startswith("/usr/bin/qemu-system") and wanted in words:
            return pid
    return 0


def core(supervisor: int, domains: Iterable[str]) -> dict[int, str]:
    """Return the processes that serve everybody, and the QEMUs of these domains, by their words."""
    found = {pid: words for pid in below(supervisor) if CORE.search(words := command_line(pid))}
    return found | {
        pid: f"QEMU of {name}" for name in domains if (pid := qemu_of(supervisor, name))
    }


def kinds(core: Mapping[int, str]) -> list[str]:
    """Return what the processes that serve everybody are, whichever they are."""
    found = (CORE.search(words) for words in core.values())
    return sorted(each[1] for each in found if each)


def likeness(pid: int) -> Likeness:
    """Return what a process is now, all its threads together. Raises `OSError` if it has ended."""
    seen = [each for task in (_PROC / str(pid) / "task").iterdir() if (each := _thread(task))]
    if not seen:
        raise ProcessLookupError(pid)
    held = [each.given for each in seen if each.given is not None]
    spaces: dict[str, set[str]] = {}
    for each in seen:
        for name, space in each.spaces.items():
            spaces.setdefault(name, set()).add(space)
    return Likeness(
        _each(each.uids for each in seen),
        {key: _each(each.rights[key] for each in seen) for key in WANTED},
        {name: _each(found) for name, found in spaces.items()},
        frozenset().union(*held) if len(held) == len(seen) else None,
    )


def _each(texts: Iterable[str]) -> str:
    return " / ".join(sorted(set(texts)))


def _thread(task: Path) -> Likeness | None:
    """Return what one thread is now, None if it has ended."""
    try:
        uids, rights = _credentials(task)
        try:
            spaces, held = _links(task / "ns"), _links(task / "fd").values()
        except PermissionError:
            _credentials(task)  # of a thread that has just ended nobody may see the namespaces
            return Likeness(uids, rights, {}, None)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Likeness(uids, rights, spaces, frozenset(filter(_GIVEN.fullmatch, held)))


def _credentials(task: Path) -> tuple[str, dict[str, str]]:
    """Return a thread's uids and rights. Raises `FileNotFoundError`, `ProcessLookupError`."""
    status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
    if status["State"].strip()[0] in "ZX":
        raise ProcessLookupError(f"{task} has ended")
    return status["Uid"].strip(), {key: status[key].strip() for key in WANTED}


def _links(folder: Path) -> dict[str, str]:
    """Return where the links of a directory lead; one may be closed while it is looked at."""
    found = {}
    for each in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[each.name] = str(each.readlink())
    return found


def resident(pid: int) -> int:
    """Return the bytes of the host's memory that a process takes; 0 if it has ended."""
    try:
        pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGESIZE")


def lost(core: dict[int, str]) -> Iterator[Finding]:
    """Say which of the processes that serve everybody have ended, and forget them."""
    for pid, words in list(core.items()):
        if not command_line(pid):
            del core[pid]
            yield Finding("hindered", f"a process that serves others has ended: {words[:60]}")


def changes(before: Likeness, now: Likeness, children: int) -> Iterator[Finding]:
    """Say what a QEMU has become that it was not, or should never have been."""
    if now.uids != before.uids or len(set(now.uids.split())) != 1:
        yield Finding("reached", f"its uids are {now.uids}, they were {before.uids}")
    for key, value in now.rights.items():
        if value != WANTED[key]:
            yield Finding("reached", f"its {key} is {value}")
    if now.spaces != before.spaces:
        yield Finding("reached", "it is in other namespaces than before")
    if now.given is None and before.given is not None:
        yield Finding("reached", "nobody may look at it any more")
    for what in sorted((now.given or frozenset()) - (before.given or frozenset())):
        yield Finding("reached", f"it holds {what}, which it was not given")
    if children:
        yield Finding("reached", f"it has started {children} processes")


def strangers(uid: int, jail: Iterable[int]) -> Iterator[Finding]:
    """Say which processes have a uid and are not of the jail, and which files belong to it."""
    known = set(jail)
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) not in known:
            try:
                status = (entry / "status").read_text()
            except OSError:
                continue
            uids = re.search(r"^Uid:\s+(.*)$", status, re.M)
            if uids and str(uid) in uids[1].split() and "\nState:\tZ" not in status:
                yield Finding("reached", f"a process outside of the jail has its uid: {entry.name}")
    for place in PLACES:
        for path in _files(place, DEPTH):
            yield from _of(path, uid)


def _of(path: str, uid: int) -> Iterator[Finding]:
    try:
        if os.lstat(path).st_uid == uid:
            yield Finding("reached", f"a file outside of the jail has its uid: {path}")
    except OSError:
        return


def _files(folder: str, depth: int) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.path
                if depth > 1 and entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path, depth - 1)
    except OSError:
        return


def held_texts(pid: int, texts: Sequence[bytes]) -> frozenset[bytes] | None:
    """Return which texts are in what a process can write of its memory; None if we may not look.

    A process that has ended has none.
    """
    found: set[bytes] = set()
    try:
        with (_PROC / str(pid) / "maps").open() as maps:
            ranges = [line.split(maxsplit=5) for line in maps]
        with (_PROC / str(pid) / "mem").open("rb", buffering=0) as memory:
            for span, rights, *_ in ranges:
                if rights.startswith("rw-"):  # not what QEMU translates into: a gigabyte, unused
                    start, end = (int(at, 16) for at in span.split("-"))
                    for piece in _pieces(memory.fileno(), start, end, max(map(len, texts))):
                        found.update(text for text in texts if text in piece)
    except PermissionError:
        return None
    except OSError:
        return frozenset(found)
    return frozenset(found)


def _pieces(memory: int, start: int, end: int, overlap: int) -> Iterator[bytes]:
    """Yield a range of memory in pieces, and what stands where two of them meet."""
    rest = b""
    for at in range(start, end, _PIECE):
        try:
            piece = os.pread(memory, min(_PIECE, end - at), at)
        except OSError:  # nothing is there, or not any more
            rest = b""
            continue
        yield piece
        yield rest + piece[:overlap]
        rest = piece[-overlap:]
