"""Compiles the Python of an image beside its source: a guest would do so at every start.

The rule: the same sources and the same interpreter give the same bytes, so hash seed and order are
fixed; what was compiled is believed by the guest as it is, because both lie in one image. The
sources are read and never run.
"""

from __future__ import annotations

import hashlib
import stat
import sys
from pathlib import Path

from skerry.image import cpio, package
from skerry.image.tree import SKERRY, Tree

COMPILER = {"bytecode": hashlib.sha256(sys.version.encode()).hexdigest()}
"""What the bytes depend on beside the sources."""
_OPTIONS = ("-q", "-o", "0", "--invalidation-mode", "unchecked-hash")


def add_to(tree: Tree, folders: tuple[str, ...], work: Path) -> None:
    """Add the bytecode of every module below these folders of a tree; `work` is an empty directory.

    Raises `SkerryError` if one is no Python that this interpreter can compile.
    """
    for path, placed in tree.placed.items():
        if path.endswith(".py") and path.startswith(folders) and stat.S_ISREG(placed.entry.mode):
            source = work / path
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_bytes(placed.entry.data)
    clean = ["env", "-i", "PYTHONHASHSEED=0", "LC_ALL=C.UTF-8"]
    compiler = [sys.executable, "-s", "-S", "-P", "-m", "compileall", *_OPTIONS]
    argv = [*clean, *compiler, "-s", str(work), "-p", "/", str(work)]
    package.run(argv, package="python3", fix="a module below these folders is no valid Python")
    for compiled in sorted(work.rglob("*.pyc")):
        data = compiled.read_bytes()
        tree.reserve(len(data), "the bytecode of its Python")
        tree.add(cpio.file(str(compiled.relative_to(work)), data), SKERRY)
