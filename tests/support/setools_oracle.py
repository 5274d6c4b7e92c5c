"""SETools from Debian's packages, unpacked and never installed, asked by Debian's Python."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import debian

WORKER = Path(__file__).with_name("setools_worker.py")
TIMEOUT_S = 560.0

_PACKAGES = ("python3-setools", "python3-networkx", "python3-pkg-resources")
_LIBRARIES = ("libselinux1", "libsepol2", "libpcre2-8-0")
_PYTHON = "usr/lib/python3/dist-packages"


@cache
def environment() -> Mapping[str, str]:
    """Return the environment in which Debian's Python finds SETools."""
    libraries = [
        str(path)
        for name in _LIBRARIES
        for folder in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
        if (path := debian.unpacked(name) / folder).is_dir()
    ]
    return {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": ":".join(str(debian.unpacked(name) / _PYTHON) for name in _PACKAGES),
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def own_map() -> Path:
    """Return SETools' own permission map."""
    return debian.unpacked("python3-setools") / _PYTHON / "setools/perm_map"


def command() -> list[str]:
    """Return the command that starts the worker."""
    return ["/usr/bin/python3", str(WORKER)]


def ask(policy: Path, permission_map: Path, questions: list[dict[str, Any]]) -> Any:
    """Ask SETools about one policy; an answer for each question, see `setools_worker.ask`."""
    return ask_all([(policy, permission_map, questions)])[0]


def ask_all(asked: Iterable[tuple[Path, Path, list[dict[str, Any]]]]) -> list[Any]:
    """Ask SETools about several policies in one process, which takes a second to start."""
    lines = [
        json.dumps({"policy": str(policy), "map": str(permission_map), "questions": questions})
        for policy, permission_map, questions in asked
    ]
    done = subprocess.run(
        command(),
        env=dict(environment()),
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def digest(names: Iterable[str]) -> str:
    """Return the digest of a set of names, as the worker makes it."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
