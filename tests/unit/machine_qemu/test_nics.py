"""The network cards of a QEMU: what is told to it, and what is left where something goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable

import pytest

from skerry.errors import LimitReached, MachineError, StateError
from skerry.machine.qemu import nics as module
from skerry.machine.qemu.nics import MAX_NICS, Nics, mac
from skerry.machine.qemu.sync import GIVEN
from tests.support.qmp import Adoption, Order, adoption, event, go, refuses, returns


async def made(a: Adoption, *, deletes: bool = True) -> Nics:
    """Return the cards of a QEMU that answers, and tells of a card's end if it `deletes` one."""
    await a.qmp.adopt()
    a.qemu.orders.clear()
    nics = Nics("alpha", a.qmp)
    a.qmp._on_event = lambda name, data: nics.deleted(data.get("device"))
    if deletes:
        a.qemu.say["device_del"] = lambda order: (
            returns({})(order)
            + json.dumps(event("DEVICE_DELETED", device=order["arguments"]["id"])).encode()
            + b"\r\n"
        )
    return nics


def orders(a: Adoption) -> list[str]:
    """Return what was ordered since."""
    found = [order["execute"] for order in a.qemu.orders]
    a.qemu.orders.clear()
    return found


def fails(*words: str, absent: bool = False) -> Callable[[Order], bytes]:
    """Answer with an error in QEMU's words."""
    kind = "DeviceNotFound" if absent else "GenericError"
    return lambda order: (
        json.dumps({"error": {"class": kind, "desc": " ".join(words)}, "id": order["id"]}).encode()
        + b"\r\n"
    )


def test_a_card_comes_by_descriptor_and_goes_with_it() -> None:
    """The descriptor leaves QEMU before the guest is asked for its card."""

    async def main() -> None:
        async with adoption() as a:
            nics = await made(a)
            end = os.open(os.devnull, os.O_RDONLY)
            await nics.add(7, "wire", end)
            os.close(end)
            backend, card = (order["arguments"] for order in a.qemu.orders[1:])
            assert backend == {"type": "socket", "id": "channel7-net", "fd": GIVEN}
            assert card["mac"] == mac("alpha", "wire")
            assert (card["netdev"], card["id"], card["romfile"]) == (
                *("channel7-net", "channel7-nic"),
                "",
            )
            assert orders(a) == ["getfd", "netdev_add", "device_add"]
            assert nics.channels == {7}
            with pytest.raises(StateError):
                await nics.add(7, "wire", end)
            await nics.remove(7)
            assert orders(a) == ["netdev_del", "closefd", "device_del"]
            assert not nics.channels
            await nics.remove(7)
            assert not orders(a), "what is not there costs nothing"

    go(main())


def test_the_address_is_what_the_guests_script_makes_of_the_name() -> None:
    """Locally administered, for one station, of its own for each domain and port."""
    script = "printf '%s/%s' alpha wire | sha256sum | sed 's/^\\(.\\{10\\}\\).*/02\\1/'"
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert mac("alpha", "wire").replace(":", "") == said.strip()
    assert len({mac(d, p) for d in ("a", "b") for p in ("x", "y")}) == 4
    assert all(int(mac("a", p)[:2], 16) & 3 == 2 for p in ("x", "y"))


def test_a_guest_that_keeps_its_card_costs_a_moment_and_a_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The descriptor is out all the same; the place is free again when the guest lets go."""
    monkeypatch.setattr(module, "RELEASE_S", 0.05)
    monkeypatch.setattr(module, "MAX_NICS", 1)

    async def main() -> None:
        async with adoption() as a:
            nics = await made(a, deletes=False)
            end = os.open(os.devnull, os.O_RDONLY)
            await nics.add(1, "wire", end)
            await nics.remove(1)
            assert not nics.channels
            with pytest.raises(LimitReached, match="MAX_NICS"):
                await nics.add(2, "wire", end)
            nics.deleted("channel1-nic")
            await nics.add(2, "wire", end)
            os.close(end)

    go(main())


REFUSALS: dict[str, tuple[Callable[[Order], bytes], type[Exception], str]] = {
    "full": (
        fails("PCI: no slot/function available for virtio-net-pci, all in use"),
        LimitReached,
        "no slot left",
    ),
    "no bus": (fails("No 'PCI' bus found for device 'virtio-net-pci'"), MachineError, "no slots"),
    "other": (fails("something"), MachineError, "something"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_card_that_does_not_come_leaves_nothing(what: str) -> None:
    """QEMU's refusal says what it means, and its end of the frames is taken away again."""
    answer, kind, words = REFUSALS[what]

    async def main() -> None:
        async with adoption() as a:
            nics = await made(a)
            a.qemu.say["device_add"] = answer
            end = os.open(os.devnull, os.O_RDONLY)
            with pytest.raises(kind, match=words):
                await nics.add(1, "wire", end)
            assert orders(a) == ["getfd", "netdev_add", "device_add", "netdev_del", "closefd"]
            assert not nics.channels
            a.qemu.say["netdev_add"] = refuses
            a.qemu.say["netdev_del"] = fails("no such device", absent=True)
            with pytest.raises(MachineError):
                await nics.add(1, "wire", end)
            assert not nics.channels
            os.close(end)

    go(main())


def test_what_an_earlier_node_left_is_found_and_can_be_removed() -> None:
    """Cards, and frames' ends without a card; nobody else's devices."""
    text = (
        "channel3-net: index=0,type=socket,socket: fd=3\r\n"
        "channel4-nic: index=0,type=nic,model=virtio-net-pci,macaddr=02:00:00:00:00:01\r\n"
        " \\ channel4-net: index=0,type=socket,socket: fd=4\r\n"
        "hub0: channel9-net: x\r\n"
    )

    async def main() -> None:
        async with adoption() as a:
            nics = await made(a)
            a.qemu.say["human-monitor-command"] = returns(text)
            names = [{"name": "channel4-nic"}, {"name": "channel5-port"}, {"name": "agent"}, 7]
            a.qemu.say["qom-list"] = returns(names)
            await nics.find()
            assert nics.channels == {3, 4}
            orders(a)
            await nics.remove(3)
            assert orders(a) == ["netdev_del", "closefd"]
            await nics.remove(4)
            assert orders(a) == ["netdev_del", "closefd", "device_del"]

    go(main())


@pytest.mark.parametrize(
    "untrusted", [None, {}, [], "".join(f"channel{n}-net: \n" for n in range(99))]
)
def test_what_an_adopted_qemu_claims_of_its_cards_is_checked(untrusted: object) -> None:
    """No text, or more cards than a machine can have, is an error; the control is taken."""

    async def main() -> None:
        async with adoption() as a:
            nics = await made(a)
            a.qemu.say["qom-list"] = returns([])
            a.qemu.say["human-monitor-command"] = returns(untrusted)
            with pytest.raises(MachineError):
                await nics.find()
            fine = "".join(f"channel{n}-net: \n" for n in range(MAX_NICS))
            a.qemu.say["human-monitor-command"] = returns(fine)
            await nics.find()
            assert len(nics.channels) == MAX_NICS

    go(main())


def test_a_frozen_qemu_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be called again, and works once QEMU answers."""
    monkeypatch.setattr(module, "TAKE_S", 0.1)

    async def main() -> None:
        async with adoption() as a:
            nics = await made(a)
            end = os.open(os.devnull, os.O_RDONLY)
            await nics.add(1, "wire", end)
            os.close(end)
            a.qemu.say["netdev_del"] = lambda order: b""
            with pytest.raises(MachineError, match="did not give up"):
                await asyncio.wait_for(nics.remove(1), 5)
            assert nics.channels == {1}
            a.qemu.say["netdev_del"] = returns({})
            await nics.remove(1)
            assert not nics.channels

    go(main())
