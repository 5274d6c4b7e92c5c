"""The command line of a QEMU is a pure function, and gives nothing that was not asked for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from skerry.machine.qemu.command import MAX_TRANSLATED, Board, QemuSpec, command
from skerry.node.jails import MEMORY_OVERHEAD

SPEC = QemuSpec(
    name="alpha",
    label="acm=a,flask=u:r:t:s0:c1,c2",
    kernel=Path("/i/vmlinux"),
    bzimage=Path("/i/bzImage"),
    initrd=Path("/i/initrd"),
    cmdline="console=ttyS0",
)


def _argv(**changes: object) -> list[str]:
    return command(msgspec.structs.replace(SPEC, **changes), str)


def _option(argv: list[str], name: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == name]


@pytest.mark.parametrize(
    ("board", "machine", "bus"),
    [
        ("auto", "microvm", "virtio-serial-device"),
        ("microvm", "microvm", "virtio-serial-device"),
        ("q35", "q35", "virtio-serial-pci"),
        ("pc", "pc", "virtio-serial-pci"),
    ],
)
def test_board(board: Board, machine: str, bus: str) -> None:
    """Each board has its kind of serial bus; microvm is what nobody asked against."""
    argv = _argv(board=board)
    assert _option(argv, "-machine")[0].split(",")[0] == machine
    assert _option(argv, "-device")[0].startswith(bus + ",")


def test_guest_memory_is_neither_merged_nor_dumped() -> None:
    """No page is shared with another machine's (KSM), and none goes to a core file."""
    options = _option(_argv(), "-machine")[0].split(",")
    assert {"mem-merge=off", "dump-guest-core=off"} <= set(options)


def test_nothing_by_default_and_stopped() -> None:
    """No default devices, no configuration files, the sandbox on, the processors stopped."""
    argv = _argv()
    assert {"-nodefaults", "-no-user-config", "-no-reboot", "-S"} <= set(argv)
    assert _option(argv, "-sandbox")[0].startswith("on,")
    assert not [word for word in argv if "path=" in word or "unix:" in word]


def test_what_is_translated_fits_beside_the_guests_memory() -> None:
    """A guest that runs other code all the time is not ended for it by its machine's limit."""
    (accel,) = _option(_argv(), "-accel")
    assert accel == f"tcg,tb-size={MAX_TRANSLATED >> 20}"
    assert MAX_TRANSLATED <= MEMORY_OVERHEAD // 4
    assert _option(_argv(accel="kvm"), "-accel") == ["kvm"]


def test_commas_are_doubled() -> None:
    """A comma in a label or a name does not become another option of QEMU."""
    argv = _argv(name="a,b")
    assert _option(argv, "-name") == ["a,,b"]
    assert _option(argv, "-fw_cfg") == [
        "name=opt/skerry/label,string=acm=a,,flask=u:r:t:s0:c1,,c2",
        "name=opt/skerry/name,string=a,,b",
    ]


def test_the_counter_rate_is_told_to_the_guest() -> None:
    """The guest's command line ends with the rate where one is given, and is as given else."""
    assert _option(_argv(tsc_khz=2500), "-append") == ["console=ttyS0 tsc_early_khz=2500"]
    assert _option(_argv(), "-append") == ["console=ttyS0"]


def test_files_have_the_names_of_the_jail() -> None:
    """Files are named as the machine sees them, never as the host does."""
    argv = command(SPEC, lambda file: f"/k/{file.name}")
    assert _option(argv, "-kernel") == ["/k/vmlinux"]
    assert _option(argv, "-initrd") == ["/k/initrd"]
    assert not [word for word in argv if "/i/" in word]


def test_memory_is_in_bytes() -> None:
    """Memory reaches QEMU to the byte."""
    assert "size=268435456B" in _argv(memory=256 << 20)


def _firmware(firmware: str) -> list[str]:
    return _argv(firmware=firmware, kernel=None, bzimage=None, initrd=None)


def test_a_firmware_has_no_kernel_and_its_guest_no_agent() -> None:
    """The board has slots for the disk; nothing of ours is in the guest; the console is there."""
    argv = _firmware("bios")
    assert _option(argv, "-machine")[0].startswith("pc,")
    assert not {"-kernel", "-initrd", "-append"} & set(argv)
    assert not [word for word in argv if "agent" in word]
    assert [word for word in _argv() if "agent" in word], "the control: an image has one"
    assert _option(argv, "-serial") == ["chardev:console"]


def test_uefi_has_its_code_read_only_and_its_variables_by_descriptor() -> None:
    """No file of the host is written; the BIOS needs neither."""
    argv = _firmware("uefi")
    code, variables = _option(argv, "-blockdev")
    assert "read-only=on" in code
    assert "filename=/dev/fdset/" in variables
    assert {"pflash0=uefi-code", "pflash1=uefi-variables"} <= set(
        _option(argv, "-machine")[0].split(",")
    )
    assert _option(_firmware("bios"), "-blockdev") == []
