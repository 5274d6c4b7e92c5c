"""Where the kernel may write memory that it moves out: the layer `swap` of the jail.

The rule: an area of swap counts as encrypted only if all that it lies on was seen to be, by what
the kernel says of its devices; one of which nothing is known counts as plain. What lies in memory
alone (zram) never gets to a disk.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SWAPS = Path("/proc/swaps")
SYS = Path("/sys")

_ENCRYPTING = re.compile(r"CRYPT-(LUKS[12]|PLAIN|LOOPAES|TCRYPT|BITLK|FVAULT2)-")
_ESCAPED = re.compile(r"\\([0-7]{3})")
_DEPTH = 8


def plain_swap(swaps: Path | None = None, sys: Path | None = None) -> list[str]:
    """Return the active areas of swap that are not known to be encrypted.

    A cipher that encrypts nothing can't be told from others by this. `swaps` and `sys` are the
    kernel's files, or others in their places.
    """
    swaps, sys = swaps or SWAPS, sys or SYS
    try:
        lines = swaps.read_text(errors="surrogateescape").splitlines()[1:]
    except FileNotFoundError:  # a kernel without swap
        return []
    return [name for line in lines if line.strip() and not _is_safe(name := _name(line), sys)]


def _name(line: str) -> str:
    """Return the file of an area, as it is written without the kernel's escapes."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), line.split(maxsplit=1)[0])


def _is_safe(name: str, sys: Path) -> bool:
    device = sys / "class/block" / Path(os.path.realpath(name)).name
    if not device.exists():
        try:
            inside = Path(name).stat().st_dev  # of a file: what it lies on
        except OSError:
            return False
        device = sys / "dev/block" / f"{os.major(inside)}:{os.minor(inside)}"
    return _encrypts(device, _DEPTH)


def _encrypts(device: Path, depth: int) -> bool:
    """Say whether a device, or all that it lies on, encrypts or stays in memory."""
    if depth == 0:
        return False
    device = device.resolve()
    if _ENCRYPTING.match(_read(device / "dm/uuid")):
        return True
    if re.fullmatch(r"zram[0-9]+", device.name):
        return _read(device / "backing_dev") in ("", "none")
    try:
        below = list((device / "slaves").iterdir())
    except OSError:
        below = []
    return bool(below) and all(_encrypts(one, depth - 1) for one in below)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
