"""What the processes of a running system cost: CPU time, RSS and PSS, from `/proc`."""

from __future__ import annotations

from pathlib import Path

from skerry.errors import SkerryError
from tests.support.cli import Cli
from tests.support.machines import descendants

PROC = Path("/proc")


def core(cli: Cli) -> dict[str, int]:
    """Return the pids of a system's `supervisor` and `node`."""
    marks = {"node": "skerry.control.service", "supervisor": "skerry.supervisor.main"}
    system = str(cli.home / "system.toml")
    found: dict[str, int] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            words = _words(int(entry.name))
            for role, module in marks.items():
                if system in words and words[3:4] == [module]:
                    found[role] = int(entry.name)
    if found.keys() != marks.keys():
        raise SkerryError("the system is not running: it has no supervisor or no node")
    return found


def _words(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:  # it has ended meanwhile
        return []


def machines(cli: Cli) -> list[int]:
    """Return the pids of all that the supervisor forked for domains."""
    pids = core(cli)
    node = descendants(pids["node"])
    return [pid for pid in descendants(pids["supervisor"])[1:] if pid not in node]


def pythons(cli: Cli) -> list[int]:
    """Return the pids of a system's Python processes: supervisor, node and what they keep."""
    return [
        pid
        for pid in descendants(core(cli)["supervisor"])
        if (_words(pid) or [""])[0].rpartition("/")[2].startswith("python")
    ]


def cpu_ms(pids: list[int]) -> float:
    """Return the CPU time of processes with all their living threads, in ms.

    Raises `SkerryError` where the kernel does not count it (`CONFIG_SCHED_INFO`).
    """
    total = 0
    for pid in pids:
        for task in (PROC / str(pid) / "task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except FileNotFoundError:
                if (PROC / "self/schedstat").exists():
                    continue  # the thread has ended
                raise SkerryError("the kernel has no /proc/PID/schedstat") from None
    return total / 1e6


def rss_mb(pid: int) -> float:
    """Return a process's resident memory in MB (10^6 bytes)."""
    return _field(PROC / str(pid) / "status", "VmRSS")


def pss_mb(pid: int) -> float:
    """Return a process's proportional share of memory in MB. Needs root: helpers are closed."""
    return _field(PROC / str(pid) / "smaps_rollup", "Pss")


def kept_mb(pids: list[int], name: str) -> float:
    """Return what all of processes keep in memory in MB, with the files in memory of that name.

    Such a file counts once and whole, mapped or not. Needs root: helpers are closed.
    """
    files: dict[int, int] = {}
    total = 0.0
    for pid in pids:
        total += pss_mb(pid) - _field(PROC / str(pid) / "smaps_rollup", "Pss_Shmem")
        for fd in (PROC / str(pid) / "fd").iterdir():
            if f"memfd:{name}" in str(fd.readlink()):
                found = fd.stat()
                files[found.st_ino] = found.st_blocks * 512
    return total + sum(files.values()) / 1e6


def _field(path: Path, name: str) -> float:
    try:
        lines = path.read_text().splitlines()
    except PermissionError:
        raise SkerryError(f"{path} can't be read", fix="run this row as root") from None
    value = next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(value) * 1024 / 1e6
