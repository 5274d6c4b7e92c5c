"""The images of the node's own domains as they are built: run in a jail with nothing else in it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.image.build import build
from skerry.image.recipe import preset
from skerry.image.services import MAINS, PLACE, PYTHON
from skerry.system.model import AUDIT_DOMAIN, MANAGER_DOMAIN
from tests.support.machines import cache

SIZES = {AUDIT_DOMAIN: (20_000_000, 100), MANAGER_DOMAIN: (24_000_000, 160)}
"""Bytes of the initramfs, and modules of Python's library, under which an image stays."""

NEVER = (
    *("turtle", "antigravity", "telnetlib", "smtpd", "ftplib", "pdb", "doctest", "unittest", "ssl"),
    *("_ssl", "_hashlib", "_ctypes_test", "_xxtestfuzz", "multiprocessing", "tarfile"),
)

Unpacked = tuple[str, Path]


@pytest.fixture(scope="module", params=sorted(MAINS))
def unpacked(request: pytest.FixtureRequest) -> Iterator[Unpacked]:
    """Give a service's name and the folder of its image's files."""
    name = str(request.param)
    image = build(cache(), preset(name))
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        argv = ["cpio", "-id", "--quiet", "--no-preserve-owner"]
        subprocess.run(argv, input=image.initrd.read_bytes(), cwd=folder, check=True)
        yield name, Path(folder)


def inside(root: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program of an image, which sees nothing but the image's files."""
    jail = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--clearenv",
        "--ro-bind",
        str(root),
        "/",
    ]
    places = ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    whole = [*jail, *places, *argv]
    return subprocess.run(whole, capture_output=True, text=True, timeout=120, check=False)


def python(root: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as the service's own start line is run."""
    line = f"import sys; sys.path.append('/{PLACE}'); {code}"
    return inside(root, f"/usr/bin/{PYTHON}", "-I", "-S", "-B", "-c", line)


def modules(root: Path, folder: str) -> list[str]:
    """Return the names of the modules below a folder of an image."""
    home = root / folder
    files = [p for p in home.rglob("*") if p.suffix in (".py", ".so")]
    parts = [(*p.relative_to(home).parent.parts, p.name.partition(".")[0]) for p in files]
    names = {".".join(p for p in part if p not in ("__init__", "lib-dynload")) for part in parts}
    return sorted(names)


def test_every_module_of_a_service_can_be_imported_in_its_image(unpacked: Unpacked) -> None:
    """Each in an interpreter's first breath, with all that it asks for; an absent one can't be."""
    name, root = unpacked
    names = [*modules(root, f"usr/lib/{PYTHON}"), *modules(root, PLACE)]
    assert MAINS[name] in names
    loop = "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"
    code = f"import sys; sys.path.append('/{PLACE}')\n{loop}\nprint('all')"
    done = inside(root, f"/usr/bin/{PYTHON}", "-I", "-S", "-B", "-c", code, *names)
    assert (done.stdout, done.stderr) == ("all\n", "")
    done = inside(root, f"/usr/bin/{PYTHON}", "-I", "-S", "-B", "-c", code, *names, "turtle")
    assert "No module named 'turtle'" in done.stderr


def test_a_service_s_image_holds_no_module_beyond_what_it_needs(unpacked: Unpacked) -> None:
    """Few modules, none of those that nobody needs, and little beyond what its start loads."""
    name, root = unpacked
    size, most = SIZES[name]
    held = set(modules(root, f"usr/lib/{PYTHON}"))
    assert not [one for one in held if one.partition(".")[0] in NEVER]
    loaded = set(python(root, f"import {MAINS[name]}; print(*sys.modules)").stdout.split())
    assert {"os", "json", "traceback", "encodings.utf_8"} <= loaded & held
    assert len(held) < most
    assert len(held - loaded) < 40
    assert build(cache(), preset(name)).sizes["initrd"] < size


def test_every_shared_library_of_a_service_is_there_and_needed(unpacked: Unpacked) -> None:
    """By the image's own loader; what is opened by name is the one exception."""
    _, root = unpacked
    files = [p for p in root.rglob("*") if p.is_file() and p.read_bytes()[:4] == b"\x7fELF"]
    shared = {p.resolve().name for p in files if p.parent.name.endswith("-linux-gnu")}
    needed = {"libgcc_s.so.1"}
    for path in files:
        if path.name not in ("busybox", "waker") and path.suffix != ".ko":
            listed = inside(
                root, "/lib64/ld-linux-x86-64.so.2", "--list", f"/{path.relative_to(root)}"
            )
            assert "not found" not in listed.stdout
            names = (line.split()[0].rpartition("/")[2] for line in listed.stdout.splitlines())
            needed |= {(root / "usr/lib/x86_64-linux-gnu" / one).resolve().name for one in names}
    assert {"libc.so.6", "libm.so.6"} <= shared
    assert shared <= needed
    assert not [one for one in shared if one.startswith(("libcrypto", "libssl", "libnss"))]


def test_an_error_in_a_service_shows_its_lines(unpacked: Unpacked) -> None:
    """With the sources of this package and of the library, and a reason that was raised from it."""
    name, root = unpacked
    code = f"import {MAINS[name]} as service, json\ntry: json.loads('[')\nexcept ValueError:\n"
    code += " try: service.Path(3)\n except TypeError: service.traceback.print_exc()"
    done = python(root, code)
    assert "raise JSONDecodeError(" in done.stderr
    assert "During handling of the above exception" in done.stderr
    assert "TypeError: " in done.stderr
    uncaught = python(root, "import msgspec; msgspec.json.decode(b'[')")
    assert (uncaught.returncode, uncaught.stderr.splitlines()[-1]) == (
        1,
        "msgspec.DecodeError: Input data was truncated",
    )
