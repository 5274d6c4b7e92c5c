"""A TPM of a QEMU: what it is started with, and that nothing can come later."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from skerry.errors import LimitReached, MachineError
from skerry.machine.qemu.command import QemuSpec, command
from skerry.machine.qemu.qmp import Qmp
from skerry.machine.qemu.tpm import Tpms

SPEC = QemuSpec("one", "red", Path("/k"), Path("/b"), Path("/i"), "quiet", tsc_khz=7)


class Answering(Qmp):
    """A QEMU's control that answers `query-tpm`."""

    def __init__(self, untrusted: object) -> None:
        super().__init__("one", lambda name, data: None)
        self.untrusted = untrusted

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, wait_s: float = 0.0
    ) -> object:
        """Answer."""
        assert command == "query-tpm"
        return self.untrusted


def tpms(untrusted: object = ()) -> Tpms:
    """Return those of a machine that is not started yet."""
    return Tpms("one", Answering(untrusted))


def test_a_tpm_waits_for_the_start_and_is_given_by_descriptor() -> None:
    """One socket and the null device, under numbers of their own; ours are closed after it."""
    near, far = socket.socketpair()
    found = tpms()
    asyncio.run(found.add(7, "chip", near.fileno()))
    near.close()
    assert found.channels == {7}
    argv, fds = found.at_launch(6)
    assert sorted(fds) == [6, 7]
    assert "passthrough,id=tpm7," in argv[argv.index("-tpmdev") + 1]
    assert argv[argv.index("-device") + 1] == "tpm-tis,tpmdev=tpm7"
    assert [word for word in argv if word.startswith("fd=")] == [
        f"fd={number},set={(1 << 30) + number - 6}" for number in (6, 7)
    ]
    found.launched()
    assert found.channels == {7}
    for descriptor in fds.values():
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)
    assert far.recv(1) == b"", "ours was the last copy here"
    far.close()


def test_a_machine_has_one_tpm_and_none_after_its_start() -> None:
    """Both refusals are one line; a machine that has none has no arguments."""
    near, far = socket.socketpair()
    with near, far:
        found = tpms()
        assert found.at_launch(6) == ([], {})
        asyncio.run(found.add(1, "chip", near.fileno()))
        with pytest.raises(LimitReached, match="a machine has one"):
            asyncio.run(found.add(2, "other", far.fileno()))
        asyncio.run(found.remove(1))
        assert found.channels == frozenset()
        found.launched()
        with pytest.raises(MachineError, match="from the start of a domain or not at all"):
            asyncio.run(found.add(3, "chip", near.fileno()))


def test_an_adopted_qemu_says_what_it_has() -> None:
    """By the names of its TPMs; what is no list is an error."""
    found = tpms([{"id": "tpm12"}, {"id": "tpm"}, {"id": 5}, "x"])
    asyncio.run(found.find())
    assert found.channels == {12}
    found.forget(12)
    assert found.channels == frozenset()
    with pytest.raises(MachineError, match="no list"):
        asyncio.run(tpms({}).find())


@pytest.mark.parametrize(
    ("board", "tpm", "told"),
    [("microvm", True, True), ("auto", True, True), ("pc", True, False), ("microvm", False, False)],
)
def test_a_microvms_kernel_is_told_where_its_tpm_is(board: str, tpm: bool, told: bool) -> None:
    """Other boards have a table for it."""
    argv = command(msgspec.structs.replace(SPEC, board=board, tpm=tpm), str)
    words = argv[argv.index("-append") + 1]
    assert ("tpm_tis.force=1 tpm_tis.interrupts=0" in words) is told
    assert words.startswith("quiet tsc_early_khz=7")
