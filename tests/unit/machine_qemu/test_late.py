"""What a QEMU did not do in time is done when it hears again, and it is not flooded until then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from skerry.errors import MachineError
from skerry.machine.qemu import late as module
from skerry.machine.qemu.late import Late
from skerry.machine.qemu.qmp import QemuRefused
from skerry.monitor.protocols import Exit
from tests.support.remote import until


class Qemu:
    """Does what it is told once it is thawed, and counts what it was told."""

    def __init__(self) -> None:
        self.frozen, self.told = True, 0
        self.did: list[str] = []

    def work(self, name: str) -> Callable[[], Coroutine[Any, Any, None]]:
        """Return a work of this name; one called `refused` is refused."""

        async def do() -> None:
            self.told += 1
            await asyncio.sleep(0)
            if self.frozen:
                raise MachineError("QEMU did not answer in time")
            if name == "refused":
                raise QemuRefused("no such device", absent=True)
            self.did.append(name)

        return do


def _run(
    scene: Callable[[Qemu, Late, asyncio.Future[Exit]], Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        await scene(Qemu(), Late(exited), exited)

    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LAST_PAUSE_S", 0.02)
    asyncio.run(main())


def test_all_is_done_after_the_thaw_though_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, in the order in which it was left; what comes later too."""

    async def scene(qemu: Qemu, late: Late, _: asyncio.Future[Exit]) -> None:
        for name in ("one", "refused", "two"):
            late.again(name, qemu.work(name))
        await until(lambda: qemu.told > 2)
        assert qemu.did == []
        qemu.frozen = False
        await until(lambda: qemu.did == ["one", "two"])
        late.again("three", qemu.work("three"))
        await until(lambda: qemu.did == ["one", "two", "three"])

    _run(scene, monkeypatch)


def test_a_frozen_one_is_told_one_thing_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is left, a round is one command: the pauses bound what it is sent."""

    async def scene(qemu: Qemu, late: Late, _: asyncio.Future[Exit]) -> None:
        for number in range(100):
            late.again(number, qemu.work(str(number)))
        await asyncio.sleep(0.2)
        assert 1 <= qemu.told <= 20

    _run(scene, monkeypatch)


def test_what_is_done_or_ended_meanwhile_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else did the one; with the machine the rest is over."""

    async def scene(qemu: Qemu, late: Late, exited: asyncio.Future[Exit]) -> None:
        late.again("one", qemu.work("one"))
        late.again("two", qemu.work("two"))
        late.done("one")
        qemu.frozen = False
        await until(lambda: qemu.did == ["two"])
        qemu.frozen = True
        late.again("three", qemu.work("three"))
        await until(lambda: qemu.told > 2)
        exited.set_result(Exit(0, "ended"))
        await asyncio.sleep(0.05)
        told, qemu.frozen = qemu.told, False
        await asyncio.sleep(0.05)
        assert (qemu.told, qemu.did) == (told, ["two"])

    _run(scene, monkeypatch)
