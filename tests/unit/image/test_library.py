"""What an image keeps of a library: all that one module may need, and nothing beside."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from skerry.errors import SkerryError
from skerry.image import cpio, elf, library
from skerry.image.tree import Tree

HOME, DYNLOAD, APP = "usr/lib/python3.9", "usr/lib/python3.9/lib-dynload", "app"
FOLDERS = (HOME, DYNLOAD, APP)


def tree(files: Mapping[str, str | bytes]) -> Tree:
    """Return a tree of files, by their paths in the library or, if those say so, below `app`."""
    made = Tree(1 << 24, merged=True)
    for name, text in files.items():
        path = name if name.startswith("app/") else f"{HOME}/{name}"
        data = text if isinstance(text, bytes) else text.encode()
        made.add(cpio.file(path, data), "test")
    return made


def app(text: str, *empty: str, **sources: str) -> Tree:
    """Return a tree of an own module `main` and of modules of the library."""
    return tree({"app/main.py": text} | {f"{n}.py": sources.get(n, "") for n in (*empty, *sources)})


def found(made: Tree) -> set[str]:
    """Return the modules that `main` needs, itself left out."""
    return set(library.closure(made, "main", FOLDERS)) - {"main"}


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import needed",
            "import needed as other",
            "from needed import x",
            "from needed import *",
        ),
        *("def f():\n    import needed", "class C:\n    def f(self):\n        import needed"),
        *(
            "try:\n    import fast\nexcept ImportError:\n    import needed",
            "if x:\n    import needed",
        ),
        *("async def f():\n    from needed import x", "f = lambda: 1\nwith x:\n    import needed"),
        *("def main():\n    import needed", "if not y: pass\nelse:\n    import needed"),
    ],
)
def test_a_module_is_found_wherever_it_is_imported(line: str) -> None:
    """In a function too, in an own `main` too; one that nobody imports is not found."""
    assert found(app(line, "needed", "unused")) == {"needed"}


def test_what_is_imported_is_followed_with_the_packages_above_it() -> None:
    """By relative names too, from a package, from a module of it, and from one above."""
    made = tree(
        {
            "app/main.py": "import one.inner.deep",
            "one/__init__.py": "from . import beside",
            "one/beside.py": "from .other import x",
            "one/other.py": "",
            "one/inner/__init__.py": "",
            "one/inner/deep.py": "from ..far import y; from . import near; from .. import name",
            "one/inner/near.py": "",
            "one/far.py": "import last",
            "one/unused.py": "",
            "last.py": "",
            "unused.py": "",
        }
    )
    below = {
        f"one.{name}" for name in ("beside", "other", "inner", "inner.deep", "inner.near", "far")
    }
    assert found(made) == {"one", "last"} | below


def test_what_a_service_never_runs_of_the_library_is_left_out() -> None:
    """What a module does as a program, on Windows, or for a type checker; the rest is not."""
    text = "def main():\n    import tester\ndef f():\n    def main():\n        import kept\n"
    text += "if __name__ == '__main__':\n    import tester\nelse:\n    import other\n"
    text += "if TYPE_CHECKING:\n    import tester\nif sys.platform == 'win32':\n    import tester\n"
    made = app("import needed", "tester", "kept", "other", needed=text)
    assert found(made) == {"needed", "kept", "other"}
    made = app(text, "tester", "kept", "other")
    assert found(made) == {"tester", "kept", "other"}, "the control: an own main is run"


def test_what_is_set_aside_is_so_for_the_library_only() -> None:
    """An own module that imports it gets it."""
    made = {"shutil": "import tarfile, needed", "tarfile": "", "needed": ""}
    assert found(app("import shutil", **made)) == {"shutil", "needed"}
    assert found(app("import shutil, tarfile", **made)) == {*made}


def test_what_a_compiled_module_imports_is_taken_from_its_names() -> None:
    """Whole names between two zeros; a part of one is none."""
    data = b"\x7fELF\0needed\0xunused\0unused.\0one.two\0"
    empty = dict.fromkeys(("needed.py", "unused.py", "one/__init__.py", "one/two.py"), "")
    made = tree({"app/main.py": "import fast", "lib-dynload/fast.cpython-39.so": data, **empty})
    assert found(made) == {"fast", "needed", "one", "one.two"}


def test_a_source_that_is_no_python_is_named() -> None:
    """In one line."""
    with pytest.raises(SkerryError, match=r"/usr/lib/python3.9/needed.py is no Python: [^\n]*$"):
        found(app("import needed", needed="def"))


def program() -> bytes:
    """Return a program of the host that is linked dynamically."""
    return Path(shutil.which("env") or "").read_bytes()


def test_what_a_program_needs_is_what_the_loader_says() -> None:
    """The loader itself first, and the libraries that its headers name; no ELF needs nothing."""
    said = subprocess.run(
        ["readelf", "-ld", shutil.which("env") or ""], capture_output=True, text=True, check=True
    ).stdout
    names = elf.needed(program())
    assert names[0] in said.partition("program interpreter: ")[2].partition("]")[0]
    shared = [
        line.partition("[")[2].rstrip("]") for line in said.splitlines() if "(NEEDED)" in line
    ]
    assert list(names[1:]) == shared != []
    assert elf.needed(b"#!/bin/sh\n") == ()


def test_a_damaged_elf_file_is_an_error() -> None:
    """Cut off anywhere in its headers, or led out of the file; whole it is read."""
    whole = program()
    assert elf.needed(whole)
    for data in (whole[:20], whole[:100], whole[:32] + b"\xff" * 8 + whole[40:]):
        with pytest.raises(SkerryError, match="a damaged ELF file"):
            elf.needed(data)


def test_only_the_shared_libraries_that_something_needs_stay() -> None:
    """With the links that lead to them; one that is needed and not there is named."""
    multiarch = f"usr/lib/{sysconfig.get_config_var('MULTIARCH')}"
    names = elf.needed(program())

    def made(*, lacking: str = "") -> Tree:
        one = app("", "unused", "codecs")
        one.add(cpio.file("usr/bin/env", program()), "test")
        for name in (*names, "libgcc_s.so.1", "libunused.so.1"):
            if name != lacking:
                one.add(cpio.file(f"{multiarch}/{name}.0", b"\x7fELF, and no more"), "test")
                one.add(cpio.link(f"{multiarch}/{name}", f"{name}.0"), "test")
        one.add(cpio.directory(f"{multiarch}/engines"), "test")
        one.add(cpio.file(f"{multiarch}/engines/afalg.so", b""), "test")
        return one

    before = made()
    size = before.size
    library.prune(before, "main", "python3.9", "app")
    left = {path.removeprefix(f"{multiarch}/") for path in before.placed if ".so" in path}
    assert left == {end for name in (*names, "libgcc_s.so.1") for end in (name, f"{name}.0")}
    assert f"{multiarch}/engines" not in before.placed
    assert f"{HOME}/unused.py" not in before.placed
    assert before.size < size
    with pytest.raises(SkerryError, match=f"/usr/bin/env needs {names[-1]}, which"):
        library.prune(made(lacking=names[-1]), "main", "python3.9", "app")
