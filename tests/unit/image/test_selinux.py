"""What is run to make an image with SELinux, the policy's compiler: in a jail, and bounded."""

import bz2
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.errors import SkerryError
from skerry.image import minimal, selinux
from tests.support.machines import cache

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
        for name in ("tools", "modules"):
            (Path(folder) / name).mkdir()
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
    path = tmp_path / "bomb.pp.bz2"
    path.write_bytes(bz2.compress(bytes(5 << 20)))
    assert len(selinux._unpacked(path)) == 5 << 20
    monkeypatch.setattr(selinux, "MODULE_MAX", 5 << 20)
    with pytest.raises(SkerryError, match=r"bomb\.pp\.bz2 is over 5 MiB"):
        selinux._unpacked(path)
