"""The images of the node's own domains: Python, msgspec, and the modules that one service needs.

The rules: what a service imports, by its source and all that this imports in turn, is in its image,
and no other module is, of this package or of Python's library (`library`); the guest's Python is
the minor version of the builder's, because msgspec and the bytecode are compiled for one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from skerry.image.recipe import Copied, Recipe, preset
from skerry.system.model import AUDIT_DOMAIN, MANAGER_DOMAIN

MAINS = {MANAGER_DOMAIN: "skerry.policy.guest", AUDIT_DOMAIN: "skerry.audit.guest"}
"""The module whose `main()` a service's guest runs."""

PLACE = "app"
"""Where msgspec and this package stand in the guest."""

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

EXCLUDE = (
    *("libbz2-1.0", "libcrypt1", "libdb5.3", "liblzma5", "libncursesw6", "libnsl2"),
    *("libreadline8", "libsqlite3-0", "libssl3", "libtinfo6", "libtirpc3", "media-types"),
)
"""Packages that only parts of Python's library need which no service does."""

DROP = (
    *("etc/ld.so.conf.d/*", f"etc/{PYTHON}/*", "usr/bin/py3*", "usr/lib/binfmt.d/*"),
    *("usr/share/binfmts/*", "usr/share/python3/*"),
)
"""What Debian's Python has for the installation of packages."""

_PACKAGE = Path(__file__).resolve().parents[1]


def service(name: str) -> Recipe:
    """Return the recipe of a service's image."""
    base, main = preset("python"), MAINS[name]
    line = f"import sys; sys.path.append('/{PLACE}'); import {main} as service; service.main()"
    return msgspec.structs.replace(
        base,
        name=name,
        packages=(*base.packages, f"{PYTHON}-minimal", f"lib{PYTHON}-stdlib"),
        exclude=(*base.exclude, *EXCLUDE),
        drop=(*base.drop, *DROP),
        files=tuple(_files(main)),
        application=main,
        start=(f"/usr/bin/{PYTHON}", "-I", "-S", "-B", "-c", line),
    )


def modules(main: str) -> list[str]:
    """Return the modules of this package that one needs, itself among them, sorted."""
    found, waiting = {"skerry"}, [main]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [name.rpartition(".")[0], *_imported(name)]
    return sorted(found)


def _imported(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(_source(name).read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from _own([node.module, *(f"{node.module}.{one.name}" for one in node.names)])
        elif isinstance(node, ast.Import):
            yield from _own(one.name for one in node.names)


def _own(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name.partition(".")[0] == "skerry" and _source(name).is_file():
            yield name


def _source(name: str) -> Path:
    place = _PACKAGE.joinpath(*name.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _files(main: str) -> Iterator[Copied]:
    library = Path(msgspec.__file__).parent
    for path in sorted([*library.glob("*.py"), *library.glob("*.so")]):
        yield Copied(path.resolve(), f"{PLACE}/msgspec/{path.name}", 0o644, 0)
    for name in modules(main):
        path = _source(name)
        yield Copied(path.resolve(), f"{PLACE}/skerry/{path.relative_to(_PACKAGE)}", 0o644, 0)
