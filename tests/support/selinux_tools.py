"""Debian's own SELinux and audit tools, run from unpacked packages and never installed."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from skerry.errors import SkerryError
from tests.support import debian

_PACKAGES = (
    ("policycoreutils-python-utils",),
    ("python3-sepolgen",),
    ("python3-selinux",),
    ("libselinux1",),
    ("libpcre2-8-0",),
    ("checkpolicy",),
    ("auditd",),
    ("libauparse0t64", "libauparse0"),
    ("libaudit1",),
    ("libcap-ng0",),
)
"""What the tools need, each by the names it has in different releases."""

_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_PROGRAMS = ("usr/bin", "usr/sbin", "sbin")
_PYTHON = "usr/lib/python3/dist-packages"


def _unpacked(names: tuple[str, ...]) -> Path:
    for name in names[:-1]:
        try:
            return debian.unpacked(name)
        except SkerryError:  # another release's name
            continue
    return debian.unpacked(names[-1])


@cache
def _roots() -> tuple[Path, ...]:
    return tuple(_unpacked(names) for names in _PACKAGES)


def _paths(*folders: str) -> str:
    found = (root / folder for root in _roots() for folder in folders)
    return ":".join(str(path) for path in found if path.is_dir())


def run_tool(name: str, *words: str) -> str:
    """Run a tool, which must succeed, and return what it printed."""
    programs = (root / folder / name for root in _roots() for folder in _PROGRAMS)
    program = next(path for path in programs if path.exists())
    # The Python tools' own first line would ignore PYTHONPATH.
    is_python = program.read_bytes().startswith(b"#!/usr/bin/python3")
    done = subprocess.run(
        [*(["/usr/bin/python3"] if is_python else []), str(program), *words],
        env={
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "LD_LIBRARY_PATH": _paths(*_LIBRARIES),
            "PYTHONPATH": _paths(_PYTHON),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (name, words, done.stdout, done.stderr)
    return done.stdout
