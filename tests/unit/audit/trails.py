"""Makes trails for the tests of the audit trail: on the simulated disk, or in real files."""

from collections.abc import Iterable
from pathlib import Path

from skerry.audit.chain import GENESIS, SEGMENT, seal
from skerry.audit.record import Record, body_json, fields_json, parse_record
from skerry.audit.segments import closed_segments
from skerry.machine.simulator.disk import SimulatedDisk

FILE = Path("/state/audit.log")


def segment_bytes(disk: SimulatedDisk, path: Path = FILE) -> list[bytes]:
    """Return the contents of a trail's segments on a simulated disk, the live one last."""
    closed = [name for _, name in closed_segments(path, disk.names(path))]
    return [disk.content(name) for name in (*closed, path)]


def first_of(disk: SimulatedDisk, path: Path = FILE) -> int:
    """Return the number of the first record by the segments' names."""
    closed = closed_segments(path, disk.names(path))
    return closed[0][0] if closed else 1


def lines_of(segments: Iterable[bytes]) -> list[bytes]:
    """Return the lines of segments one behind the other."""
    return [line for data in segments for line in data.splitlines(keepends=True)]


def made_segments(sizes: Iterable[int]) -> list[list[bytes]]:
    """Return the lines of a good trail in segments of so many records."""
    segments: list[list[bytes]] = []
    n, prev = 0, GENESIS
    for size in sizes:
        lines = []
        for index in range(size):
            n += 1
            begins = bool(segments) and not index
            fields = {"last": n - 1, "hash": prev} if begins else {"who": f"guest {n}"}
            event = SEGMENT if begins else "allow"
            line, prev = seal(body_json(n, n * 10**15, n, prev, event, fields_json(fields)), prev)
            lines.append(line)
        segments.append(lines)
    return segments


def records(lines: Iterable[bytes]) -> list[Record]:
    """Return the records of lines."""
    return [parse_record(line) for line in lines]
