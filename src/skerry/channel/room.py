"""How much memory this host has left for a memory that is about to be given its pages.

The rule: what has no room is refused before a page is taken. The kernel does not refuse it: it
gives a file in memory its pages for as long as there are any, and then ends processes, among them
the machines. Bounds are the host's own memory, and those of the control groups that the caller is
in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from skerry.errors import LimitReached, TransportError

RESERVE = 256 << 20
"""Bytes that are left to the host, and in the caller's control group, beside a memory."""

_ROOT = Path("/")
_GROUPS = "sys/fs/cgroup"


def require(size: int, root: Path = _ROOT) -> None:
    """Refuse a memory of so many bytes that this host has no room for.

    `root` is where `proc` and `sys` are. Raises `LimitReached`; `TransportError` where what is left
    can't be told.
    """
    try:
        left = available(root)
    except (OSError, ValueError) as error:
        raise TransportError(
            f"how much memory this host has left can't be told: {error}",
            fix="without that no memory is made; see that the node can read /proc and its cgroup",
        ) from None
    if size > left - RESERVE:
        raise LimitReached(
            f"no room for a memory of {_mib(size)} on this host: {_mib(left)} are left, of which "
            f"{_mib(RESERVE)} stay free",
            fix="make it smaller, cut other memories, or stop a domain",
        )


def available(root: Path = _ROOT) -> int:
    """Return the bytes that the caller can still take before the kernel ends somebody.

    What domains may take later of the memory that they have is not taken off. Raises `OSError` or
    `ValueError`, which says what is not as it should be.
    """
    text = (root / "proc/meminfo").read_text("ascii")
    found = re.findall(r"^MemAvailable: +([0-9]{1,15}) kB$", text, re.MULTILINE)
    if len(found) != 1:
        raise ValueError("/proc/meminfo has no line MemAvailable")
    return min([int(found[0]) << 10, *_in_groups(root)])


def _in_groups(root: Path) -> Iterator[int]:
    """Yield what is left in each control group with a limit that the caller is in, or below."""
    for line in (root / "proc/self/cgroup").read_text("utf-8").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not number.isdigit() or not path.startswith("/"):
            raise ValueError(f"/proc/self/cgroup has the line {line[:80]!r}")
        if "memory" in controllers.split(","):
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _up(root / _GROUPS / "memory", path, *files)
        elif (number, controllers) == ("0", ""):
            yield from _up(root / _GROUPS, path, "memory.max", "memory.current", "inactive_file")


def _up(mount: Path, path: str, most: str, used: str, cached: str) -> Iterator[int]:
    """Yield what is left in a group and in each above it; where no file is, there is no limit."""
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts), -1, -1):
        group = mount.joinpath(*parts[:depth])
        try:
            limit = (group / most).read_text("ascii").strip()
            if limit == "max":
                continue
            # The kernel gives up unused pages of files before it ends anybody.
            stat = (group / "memory.stat").read_text("ascii")
            now = (group / used).read_text("ascii").strip()
        except FileNotFoundError:
            continue
        idle = re.findall(rf"^{cached} ([0-9]{{1,20}})$", stat, re.MULTILINE)
        if len(idle) != 1 or not (limit.isdigit() and now.isdigit()):
            raise ValueError(f"the files memory.* of {group} are not understood")
        yield max(0, int(limit) - int(now) + int(idle[0]))


def _mib(count: int) -> str:
    """Write a number of bytes, at least one MiB or 0."""
    return f"{count >> 20} MiB" if count >> 20 or not count else f"{count >> 10} KiB"
