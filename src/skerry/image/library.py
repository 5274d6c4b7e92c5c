"""What an image keeps of Python's library: the modules that one module needs, and their libraries.

The rules: a module stays if the entry module imports it, or a module that stays does, wherever in
its text: in a function, in a `try`. Sources are parsed and never run. What a compiled module
imports is taken from the names that it holds. What only the interpreter itself asks for, and what
the library names for a use that no service makes, stands in the two lists here. Of the shared
libraries those stay that a program or a module which is left needs.
"""

from __future__ import annotations

import ast
import posixpath
import re
import stat
from collections.abc import Iterator

from skerry.errors import SkerryError
from skerry.image import elf
from skerry.image.tree import Tree

ALWAYS = (
    # No start without: `python3 -I -S`, its standard streams, and the codecs that it has in C
    # under other names too.
    *("abc", "codecs", "encodings.aliases", "encodings.ascii", "encodings.latin_1"),
    *("encodings.utf_8", "io", "os", "posixpath", "stat"),
    # What is built into the interpreter imports these by name.
    *("_strptime", "collections.abc", "copyreg", "typing", "warnings"),
    # What prints an error, with the lines of the source.
    *("linecache", "traceback"),
)
"""Modules that no source names and every service needs."""

ASIDE: tuple[tuple[str, str], ...] = (
    ("*", "ssl"),  # asyncio's TLS: a guest has no network, and asyncio goes without
    ("concurrent.futures", "concurrent.futures.process"),  # work in processes
    ("hashlib", "_hashlib"),  # OpenSSL's; the interpreter has the same of its own
    ("hashlib", "logging"),  # for an algorithm that neither has
    ("importlib._bootstrap_external", "importlib.metadata"),  # what is installed, by its name
    ("importlib._bootstrap_external", "importlib.readers"),  # data files of packages
    ("os", "subprocess"),  # os.popen
    ("platform", "plistlib"),  # macOS
    ("platform", "socket"),  # platform.node, where uname has none
    ("platform", "subprocess"),  # the processor's name, by a command
    ("random", "statistics"),  # its test of itself
    ("shutil", "bz2"),  # archives, which shutil does without
    ("shutil", "lzma"),
    ("shutil", "tarfile"),
    ("shutil", "zipfile"),
    ("uuid", "shutil"),  # the card's address, by a command
    ("uuid", "socket"),
    ("uuid", "subprocess"),
    ("warnings", "tracemalloc"),  # where something was made that was never closed
)
"""Modules of the library (or any of it), and what they import for a use that no service makes."""

OPENED = ("libgcc_s.so.1",)
"""Shared libraries that are opened by name: libc's, when a thread ends."""

_AS_PROGRAM = ("_main", "_test", "main", "test")
"""Functions of the library that are run where a module is a program."""
_NEVER = (
    *("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'"),
    *("sys.platform == 'win32'", "os.name == 'nt'"),
)
_NAME = re.compile(rb"(?<=\0)[A-Za-z_][A-Za-z0-9_.]{1,80}(?=\0)")
_SHARED = re.compile(r"usr/lib.*/[^/]+\.so(\.[0-9.]+)?")


def prune(tree: Tree, main: str, python: str, place: str) -> None:
    """Take everything out of a tree that a service does not need.

    `main`: the entry module; `python`: the interpreter's name, like `python3.11`; `place`: the
    folder of the service's own modules. Raises `SkerryError` for a source that is no Python, and
    where a library is needed that the tree does not hold.
    """
    home = f"usr/lib/{python}"
    kept = set(closure(tree, main, (home, f"{home}/lib-dynload", place)).values())
    for path in [path for path in tree.placed if path.startswith(f"{home}/")]:
        if path not in kept and not any(one.startswith(f"{path}/") for one in kept):
            tree.remove(path)
    _prune_shared(tree, home)


def closure(tree: Tree, main: str, folders: tuple[str, ...]) -> dict[str, str]:
    """Return the modules that one needs, itself among them, each with its path in the tree.

    `folders`: where modules lie, the last of them the service's own. What is nowhere there is
    built into the interpreter, or not of this system. Raises `SkerryError` as `prune`.
    """
    known = dict(reversed(list(_modules(tree, folders))))
    found: dict[str, str] = {}
    waiting = [main, *ALWAYS]
    while waiting:
        name = waiting.pop()
        if name in known and name not in found:
            path = found[name] = known[name]
            waiting.append(name.rpartition(".")[0])
            own = path.startswith(f"{folders[-1]}/")
            names = set(_imported(name, path, tree.placed[path].entry.data, own=own))
            waiting += names if own else [one for one in names if not _aside(name, one)]
    return found


def _modules(tree: Tree, folders: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Return the name and the path of each module, in the order in which Python would look."""
    for folder in folders:
        for path, placed in tree.placed.items():
            inner = path.removeprefix(f"{folder}/")
            if inner != path and path.endswith((".py", ".so")) and stat.S_ISREG(placed.entry.mode):
                above, _, file = inner.rpartition("/")
                parts = [*above.split("/"), file.partition(".")[0]]
                name = ".".join(part for part in parts if part).removesuffix(".__init__")
                yield name, path


def _aside(name: str, imported: str) -> bool:
    return any(
        one in ("*", name) and (imported == other or imported.startswith(f"{other}."))
        for one, other in ASIDE
    )


def _imported(name: str, path: str, data: bytes, *, own: bool) -> Iterator[str]:
    """Return the names that a module imports; among them are some that are no modules."""
    if path.endswith(".so"):
        yield from (match.decode() for match in _NAME.findall(data))
        return
    try:
        source = ast.parse(data)
    except (SyntaxError, ValueError) as error:
        raise SkerryError(f"/{path} is no Python: {ascii(str(error))[1:-1]}") from None
    package = name if path.endswith("/__init__.py") else name.rpartition(".")[0]
    for node in _statements(source, own=own):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{one.name}" for one in node.names)


def _statements(node: ast.AST, *, own: bool) -> Iterator[ast.AST]:
    """Return all that may run in a service: of the library, what it does as a program does not."""
    for child in ast.iter_child_nodes(node):
        program = isinstance(node, ast.Module) and isinstance(child, ast.FunctionDef)
        if program and not own and getattr(child, "name", "") in _AS_PROGRAM:
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in _NEVER:
            yield from _statements(ast.Module(child.orelse, []), own=own)
            continue
        yield child
        yield from _statements(child, own=own)


def _prune_shared(tree: Tree, home: str) -> None:
    shared = [p for p in tree.placed if _SHARED.fullmatch(p) and not p.startswith(f"{home}/")]
    by_name: dict[str, list[str]] = {}
    for path in shared:
        by_name.setdefault(posixpath.basename(path), []).append(path)
    # Whose need is not known from the start: what is opened by name, where it is there.
    kept: set[str] = set()
    waiting = [p for p, one in tree.placed.items() if p not in shared and one.entry.data]
    waiting += [path for name in OPENED for path in by_name.get(name, ())]
    while waiting:
        path = waiting.pop()
        entry = tree.placed[path].entry
        if path in kept or (stat.S_ISLNK(entry.mode) and path not in shared):
            continue
        kept.add(path)
        if stat.S_ISLNK(entry.mode):
            waiting.append(_led_to(tree, path))
            continue
        for name in _needed(path, entry.data):
            if name not in by_name:
                raise SkerryError(f"/{path} needs {name}, which the image does not hold")
            waiting += by_name[name]
    for path in shared:
        if path not in kept:
            tree.remove(path)
    for path in _empty(tree):
        tree.remove(path)


def _needed(path: str, data: bytes) -> tuple[str, ...]:
    try:
        return elf.needed(data)
    except SkerryError as error:
        raise SkerryError(f"/{path} can't be taken: {error}") from None


def _led_to(tree: Tree, path: str) -> str:
    """Return the path that a link to a shared library leads to."""
    target = tree.placed[path].entry.data.decode()
    found = tree.path(posixpath.normpath(posixpath.join("/", posixpath.dirname(path), target)))
    if found not in tree.placed:
        raise SkerryError(f"/{path} leads to /{found}, which the image does not hold")
    return found


def _empty(tree: Tree) -> list[str]:
    """Return the folders below `/usr/lib` in which nothing is left."""
    filled = {
        parent
        for path, placed in tree.placed.items()
        if not stat.S_ISDIR(placed.entry.mode)
        for parent in _parents(path)
    }
    return [
        path
        for path, placed in tree.placed.items()
        if path.startswith("usr/lib/") and stat.S_ISDIR(placed.entry.mode) and path not in filled
    ]


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path
