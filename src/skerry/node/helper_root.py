"""The root of a jailed Python helper: the interpreter, some of its library, msgspec, this package.

The rules: a helper's root holds no program but the interpreter, and of this package only what
decides, records, relays and serves. It is named by the kernel's stamps of every file that goes in
(number, size, times of change, which nobody can set back), so that to find it again reads no file.

msgspec and this package stand in a directory of their own, which is bound into the root: the other,
ten times as large, stays the same when this package changes.
"""

from __future__ import annotations

import hashlib
import os
import py_compile
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from skerry.jail.errors import JailError
from skerry.jail.root import libraries, make

PYTHON = Path(sys.executable).resolve()
"""The interpreter of a helper, under the same path in its jail: that of the node."""

PACKAGES = "/app"
"""Where msgspec and this package stand in the jail."""

_LIBRARY = Path(sysconfig.get_path("stdlib"))
_FOLDERS = (
    ".",
    "asyncio",
    "collections",
    "concurrent",
    "concurrent/futures",
    "ctypes",
    "encodings",
    "importlib",
    "json",
    "logging",
    "re",
    "tomllib",
    "urllib",
    "xml",
    "xml/parsers",
)
_EXTENSIONS = (
    *("_asyncio", "_contextvars", "_ctypes", "_decimal", "_hashlib", "_json", "_queue", "_typing"),
    *("mmap", "resource"),
)
_PARTS = ("audit", "policy", "system", "wire", "xsm")
_SINGLE = (
    "supervisor/__init__.py",
    "supervisor/spawn.py",
    "channel/__init__.py",
    "channel/relay.py",
    "device/__init__.py",
    *(
        f"device/uplink/{name}.py"
        for name in (
            "__init__",
            *("allow", "dialer", "dns", "flow", "gate", "names", "report"),
            "words",
        )
    ),
    "device/switch/__init__.py",
    "device/switch/engine.py",
    "device/switch/table.py",
)


class HelperRoot(NamedTuple):
    """The root of every helper, and what is bound into it at `PACKAGES`."""

    root: Path
    packages: Path


def helper_root(directory: Path) -> HelperRoot:
    """Return both, made if they are not there (see `root.make`). Raises JailError."""
    python, packages = _python(), dict(_packages())
    return HelperRoot(
        _stamped(directory, "python", python, lambda root: _fill(root, python)),
        _stamped(directory, "helper", packages, lambda root: _compile(root, packages)),
    )


def _stamped(
    directory: Path, name: str, files: dict[str, Path], fill: Callable[[Path], None]
) -> Path:
    digest = hashlib.sha256(sys.version.encode())
    try:
        for inside, path in sorted(files.items()):
            stamp = path.stat()
            words = stamp.st_ino, stamp.st_size, stamp.st_mtime_ns, stamp.st_ctime_ns
            digest.update(f"{inside}\0{path}\0{words}\0".encode())
    except OSError as error:
        raise JailError(f"the helpers' root needs {error.filename}: {error.strerror}") from error
    return make(directory / f"{name}-{digest.hexdigest()[:16]}", fill)


def _python() -> dict[str, Path]:
    """Return the path in the jail of every file of the interpreter, and where the host has it."""
    extensions = [path for name in _EXTENSIONS for path in _extension(name)]
    found: dict[str, Path] = {}
    for program in (PYTHON, *extensions):
        found |= {str(path): path for path in (program, *libraries(program))}
    for module in Path(msgspec.__file__).parent.glob("*.so"):
        found |= {str(path): path for path in libraries(module)}
    for folder in _FOLDERS:
        place = _LIBRARY / folder
        found |= {str(path): path for path in place.glob("*.py")}
        compiled = (place / "__pycache__").glob(f"*.{sys.implementation.cache_tag}.pyc")
        found |= {str(path): path for path in compiled}
    return found


def _extension(name: str) -> Iterator[Path]:
    """Yield the file of an extension module; one that the interpreter has built in has none."""
    yield from (_LIBRARY / "lib-dynload").glob(f"{name}.*.so")


def _packages() -> Iterator[tuple[str, Path]]:
    other = Path(msgspec.__file__).parent
    for pattern in ("*.py", "*.so"):
        yield from ((f"msgspec/{path.name}", path) for path in other.glob(pattern))
    own = Path(__file__).resolve().parent.parent
    chosen = [*own.glob("*.py"), *(own / name for name in _SINGLE)]
    chosen += [path for part in _PARTS for path in (own / part).rglob("*.py")]
    yield from ((f"skerry/{path.relative_to(own)}", path) for path in chosen)


def _fill(root: Path, files: dict[str, Path]) -> None:
    for inside, path in files.items():
        copy = root / inside.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        # The library's compiled files name the time at which their source was changed.
        os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        copy.chmod(0o555 if os.access(path, os.X_OK) else 0o444)
    (root / PACKAGES.lstrip("/")).mkdir(exist_ok=True)


def _compile(root: Path, files: dict[str, Path]) -> None:
    for inside, path in files.items():
        copy = root / inside
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copy.chmod(0o444)
        if inside.endswith(".py"):
            compiled = py_compile.compile(
                str(copy),
                dfile=f"{PACKAGES}/{inside}",
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
            Path(str(compiled)).chmod(0o444)  # whatever the umask says
