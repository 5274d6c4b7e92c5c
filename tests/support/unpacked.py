"""Debian's own SELinux and audit tools, unpacked beside the system and never installed.

The packages come through apt, are checked by hash, and stay in a cache of the user's; a machine
that holds none of them needs the network once.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from skerry.image import package, store

CACHE = Path(f"/var/tmp/skerry-tests-{os.getuid()}")

_TOOLS = (
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
"""Packages, with the names they have in different releases."""

_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


def _describe(names: Sequence[str]) -> package.Package:
    """Return what apt's verified lists say of the first of these names that they hold."""
    for name in names:
        shown = subprocess.run(
            ["apt-cache", "show", "--no-all-versions", name],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        lines = shown.partition("\n\n")[0].splitlines()
        fields = dict(line.split(": ", 1) for line in lines if ": " in line)
        if fields.get("Package") == name:
            return package.Package(name, fields["Version"], int(fields["Size"]), fields["SHA256"])
    raise AssertionError(f"apt's lists hold none of {names}: run apt-get update")


@cache
def tools() -> Path:
    """Return a directory that looks like a root with the tools in it."""
    with store.locked(CACHE):
        packages = [_describe(names) for names in _TOOLS]
        key = hashlib.sha256("".join(p.sha256 for p in packages).encode()).hexdigest()[:16]
        root = CACHE / f"tools-{key}"
        if not root.exists():
            with store.workspace(CACHE) as work:
                for found in packages:
                    package.unpack(package.fetch(CACHE, found, lambda _: None), work / "root")
                (work / "root").rename(root)
    return root


def run_tool(path: str, *words: str, python: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a tool of the unpacked packages, by its path in them; it must succeed."""
    root = tools()
    argv = ["/usr/bin/python3"] if python else []
    done = subprocess.run(
        [*argv, str(root / path), *words],
        env={
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "LD_LIBRARY_PATH": ":".join(str(root / folder) for folder in _LIBRARIES),
            "PYTHONPATH": str(root / "usr/lib/python3/dist-packages"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (path, words, done.stdout, done.stderr)
    return done
