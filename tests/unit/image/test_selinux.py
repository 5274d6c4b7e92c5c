"""What is run to make an image with SELinux, the policy's compiler: in a jail, and bounded."""

import bz2
import ctypes
import os
import socket
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.errors import SkerryError
from skerry.image import cpio, minimal, selinux
from skerry.image.package import Package
from tests.support.machines import cache
from tests.unit.image.test_deb import member, package

PROBE = """
b={busybox}
$b id -u >{out}/uid
echo x 2>/dev/null >{root}/new && echo done >{out}/write
$b nc -w 2 127.0.0.1 {port} </dev/null 2>/dev/null && echo done >{out}/net
$b cat /etc/passwd >{out}/host 2>/dev/null
$b grep CapEff /proc/self/status >{out}/capabilities 2>/dev/null
:
"""


@pytest.fixture
def work() -> Iterator[Path]:
    """A workspace as a build has it: on the cache, which others can traverse."""
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="jail-", dir=cache()) as folder:
        for name in ("tools/w", "modules"):
            (Path(folder) / name).mkdir(parents=True)
        yield Path(folder)


def found(folder: Path) -> dict[str, str]:
    """Return what a probe wrote."""
    return {path.name: path.read_text().strip() for path in folder.iterdir() if path.is_file()}


def test_the_compiler_runs_in_a_jail(work: Path) -> None:
    """Not as root, without network, host files and a root to write to; the control: the same words
    outside do all of it."""
    busybox = minimal.busybox_program()
    modules, outside = work / "modules", work / "outside"
    outside.mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        port = server.getsockname()[1]
        inside = PROBE.format(busybox="/w/busybox", out="/w", root="", port=port)
        selinux._open_to_nobody(work, modules)
        selinux._run(work / "tools", modules, busybox, ["/w/busybox", "sh", "-c", inside])
        free = PROBE.format(busybox=busybox, out=outside, root=outside, port=port)
        server.settimeout(10)
        with subprocess.Popen([busybox, "sh", "-c", free]) as control:
            server.accept()[0].close()
            assert control.wait(20) == 0
    got = found(modules)
    assert got.keys() == {"uid", "host", "capabilities", "busybox"}
    assert (got["host"], got["capabilities"]) == ("", "")
    assert got["uid"] != "0" or os.geteuid() != 0
    control_got = found(outside)
    assert {"net", "write"} <= control_got.keys()
    assert "root:" in control_got["host"]


def test_a_tool_that_fails_ends_the_build(work: Path) -> None:
    """With its last words; one that succeeds does not."""
    busybox = minimal.busybox_program()
    selinux._open_to_nobody(work, work / "modules")
    tools, modules, shell = work / "tools", work / "modules", ["/w/busybox", "sh", "-c"]
    selinux._run(tools, modules, busybox, [*shell, "true"])
    with pytest.raises(SkerryError, match="failed: no such module"):
        selinux._run(tools, modules, busybox, [*shell, "echo no such module >&2; false"])


def test_a_module_over_its_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small it is packed; at its bound it is read."""
    packed = bz2.compress(bytes(5 << 20))
    assert len(selinux._unpacked("bomb", packed)) == 5 << 20
    monkeypatch.setattr(selinux, "MODULE_MAX", 5 << 20)
    with pytest.raises(SkerryError, match="bomb is over 5 MiB"):
        selinux._unpacked("bomb", packed)


def deb(folder: Path, name: str, files: dict[str, bytes], postinst: str = "") -> Path:
    """Build a package of these programs and files."""
    home = folder / name
    for path, data in files.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(data)
        (home / path).chmod(0o755)
    (home / "DEBIAN").mkdir()
    (home / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    (home / "DEBIAN/postinst").write_text(f"#!/bin/sh\n{postinst}\n")
    (home / "DEBIAN/postinst").chmod(0o755)
    argv = ["dpkg-deb", "--build", str(home), str(folder / f"{name}.deb")]
    subprocess.run(argv, check=True, capture_output=True)
    return folder / f"{name}.deb"


def compiled(work: Path, script: str, *more: cpio.Entry) -> dict[str, bytes]:
    """Make a policy with a compiler that is this script; return the files by path.

    `more` are links of the compiler's package and files of any path.
    """
    tool = b"#!/w/busybox sh\nb=/w/busybox\n"
    programs = {
        "usr/bin/secilc": tool + script.encode(),
        "usr/libexec/selinux/hll/pp": tool + b'$b cp "$1" "$2"\n',
    }
    members = [member(path, data) for path, data in programs.items()]
    for entry in more:
        link = stat.S_ISLNK(entry.mode)
        kind, target = (tarfile.SYMTYPE, entry.data.decode()) if link else (tarfile.REGTYPE, "")
        members.append(member(entry.path, b"" if link else entry.data, kind, linkname=target))
    module = {"usr/share/selinux/default/base.pp.bz2": bz2.compress(b"base")}
    debs = {
        Package("secilc", "1", 0, ""): package(work, members),
        Package(selinux.POLICY_PACKAGE, "1", 0, ""): deb(work, "policy", module, 'notdefault=""'),
    }
    for name in ("tools/w", "tools", "modules"):
        (work / name).rmdir()
    made = selinux.make(debs, minimal.busybox_program(), work, b"own", "")
    return {entry.path: entry.data for entry in made}


GOOD = "$b cat /w/base.cil /w/skerry.cil >/w/policy; echo contexts >/w/contexts\n"


def test_what_the_compiler_leaves_is_the_policy(work: Path) -> None:
    """The control of the next: the same packages with a compiler that does its work."""
    made = compiled(work, GOOD)
    assert made["etc/selinux/default/policy/policy.33"] == b"baseown"
    assert made["etc/selinux/default/contexts/files/file_contexts"] == b"contexts\n"


@pytest.mark.parametrize("name", ["policy", "contexts"])
@pytest.mark.parametrize(
    "left",
    ["$b ln -s {secret} /w/{name}", "$b mkfifo /w/{name}", "$b mkdir /w/{name}", ":"],
    ids=["link", "pipe", "folder", "nothing"],
)
def test_a_hostile_compiler_reaches_no_file_by_what_it_leaves(
    left: str, name: str, work: Path
) -> None:
    """A link to what only the builder may read is not followed, and nothing is waited for."""
    secret = work / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    hostile = left.format(secret=secret, name=name)
    with pytest.raises(SkerryError, match=f"left no such file: .*/{name}: ") as caught:
        compiled(work, f"{GOOD}$b rm /w/{name}\n{hostile}\n")
    assert "\n" not in str(caught.value)


def test_a_policy_over_its_bound_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy is at the bound and is read; the contexts are over it, and are not read whole."""
    monkeypatch.setattr(selinux, "RESULT_MAX", 7)
    with pytest.raises(SkerryError, match="contexts: longer than 7 bytes"):
        compiled(work, GOOD)


@pytest.mark.parametrize("name", ["usr/evil", "w"])
def test_a_link_of_the_compilers_package_leads_no_file_out(name: str, work: Path) -> None:
    """A file behind it is refused, and so is one in the place of the jail's own folder."""
    outside = work / "outside"
    outside.mkdir()
    link = cpio.link(name, str(outside))
    with pytest.raises(SkerryError, match=r"lies behind the link|comes from both"):
        compiled(work, GOOD, link, cpio.file(f"{name}/x", b"evil"))
    assert list(outside.iterdir()) == []


def test_a_link_of_the_compilers_package_is_one_in_its_jail(work: Path) -> None:
    """The control: it is there, and leads to nothing of the host."""
    seen = "[ -L /usr/evil ] && [ ! -e /usr/evil ] || exit 1\n"
    assert compiled(work, seen + GOOD, cpio.link("usr/evil", str(work)))


class _Option(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("value", ctypes.c_char_p))


def looked_up(lines: str, path: str, folder: Path) -> str:
    """Return the context that libselinux finds for a plain file; empty if it refuses the lines."""
    (folder / "contexts").write_text(lines)
    library = ctypes.CDLL("libselinux.so.1")
    library.selabel_open.restype = ctypes.c_void_p
    named = _Option(3, str(folder / "contexts").encode())
    handle = ctypes.c_void_p(library.selabel_open(0, ctypes.byref(named), 1))
    found = ctypes.c_char_p()
    if handle.value is None:
        return ""
    library.selabel_lookup_raw(handle, ctypes.byref(found), path.encode(), stat.S_IFREG)
    return (found.value or b"").decode()


@pytest.mark.parametrize(
    "path",
    [
        "srv/a-b",
        "my-data/x",
        "my dir/a  b",
        "a.b/c+",
        "a)b]c}d/e",
        "a\\b/c",
        "#a/&",
        "ü/é x",
        "^a/[c]$",
    ],
)
def test_a_file_of_a_range_has_its_line_whatever_it_is_called(path: str, tmp_path: Path) -> None:
    """As libselinux reads it: for this path and for no other, and no line of it breaks the rest."""
    policy = "/.* u:r:default:s0\n/srv/a-b -- u:r:exact:s0\n"
    assert looked_up(policy, f"/{path}", tmp_path).startswith("u:r:")
    lines = policy + selinux.context(path, "s0:c1,c2")
    assert looked_up(lines, f"/{path}", tmp_path) == f"{selinux.DATA}:s0:c1,c2"
    others = {f"{path}x", f"x{path}", path[:-1], path.replace(".", "x"), path.replace("+", "c")}
    for other in (f"/{one}" for one in others - {path}):
        assert looked_up(lines, other, tmp_path) == "u:r:default:s0"
