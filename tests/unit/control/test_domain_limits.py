"""How many channels a domain may have: refused beyond, given after a cut, raised by a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.channel.memory import MAX_BYTES, MIN_BYTES
from skerry.errors import Denied, InputError, LimitReached, SkerryError
from skerry.machine.qemu.blocks import MAX_DISKS
from skerry.machine.qemu.command import MAX_PORTS
from skerry.node.difference import needs_restart
from skerry.system.load import MAX_CPU, MIN_CPU, parse_system
from skerry.system.model import MAX_DOMAIN_CHANNELS, DomainSpec
from skerry.wire import control as wire
from tests.support.reconciling import OPERATED, ports, up
from tests.unit.control.test_calls import Client, Host, play
from tests.unit.control.test_resources import LABELLED, SYSTEM

ONE = OPERATED.replace('[domains.a]\nlabel = "red"', '[domains.a]\nlabel = "red"\nchannels = 1')
TWO = ONE.replace("channels = 1", "channels = 2")


async def connect(host: Host, port: str) -> int:
    """Bind one more channel between the two domains."""
    row = await host.handle(wire.Connect("a", "b", port=port), Client("op"))
    assert isinstance(row, dict)
    return int(row["id"])


def test_a_domain_gets_no_more_channels_than_it_may_have(tmp_path: Path) -> None:
    """The next is refused by name, on record, and is not bound; a cut makes room.

    The control has no key.
    """

    async def scene(host: Host) -> None:
        await host.up()
        (first,) = host.monitor.channels
        with pytest.raises(LimitReached, match="domain a has its 1 channels") as refused:
            await connect(host, "more")
        _, denied = host.audit.records[refused.value.record - 1]
        assert (denied["hook"], denied["port"]) == ("channel_two_way", "more")
        assert host.audit.events("deny") == [denied]
        assert list(host.monitor.channels) == [first]
        host.monitor.cut(first.number)
        await connect(host, "more")

    play(tmp_path, scene, system=ONE)

    async def control(host: Host) -> None:
        await host.up()
        await connect(host, "more")

    play(tmp_path, control, system=OPERATED)


@pytest.mark.parametrize("size", [1, 2048, 3072, 12 << 10, (1 << 30) - 1])
def test_a_size_that_no_memory_has_is_wrong_usage_and_asks_nobody(
    tmp_path: Path, size: int
) -> None:
    """Nothing of it is in the trail. The control: one that a memory has is asked about."""

    async def scene(host: Host) -> None:
        await host.up()
        before = len(host.audit.records)
        with pytest.raises(InputError, match=f"--size: {size} bytes are none: a memory's size is"):
            await host.handle(wire.Connect("a", "b", "memory", "m", size=size), Client("op"))
        assert len(host.audit.records) == before
        with pytest.raises(SkerryError) as error:  # toy machines have none
            await host.handle(wire.Connect("a", "b", "memory", "m", size=4096), Client("op"))
        assert not isinstance(error.value, InputError)
        assert len(host.audit.records) > before

    play(tmp_path, scene, system=OPERATED)


def test_the_node_and_the_maker_of_memories_have_the_same_limits() -> None:
    """What a call may say is what can be made."""
    assert (wire.MIN_MEMORY, wire.MAX_MEMORY) == (MIN_BYTES, MAX_BYTES)
    for size in (MIN_BYTES, 2 * MIN_BYTES, MAX_BYTES):
        assert wire.is_memory_size(size)
    for size in (0, -4096, MIN_BYTES // 2, 3 * MIN_BYTES, 2 * MAX_BYTES):
        assert not wire.is_memory_size(size)


def test_what_works_for_a_domain_has_as_much_of_the_processors_as_it(tmp_path: Path) -> None:
    """By the channel over which it is used; a domain without a share, and no channel, has none."""

    async def scene(host: Host) -> None:
        await host.up()
        assert host.node.share(ports(host)["vault"]) == 35
        await host.handle(wire.Connect("b", "vault", port="again"), Client("op"))
        assert host.node.share(ports(host)["again"]) == 0
        assert host.node.share(999) == 0

    system = SYSTEM.replace('uses = ["vault"]', 'uses = ["vault"]\ncpu = 35')
    play(tmp_path, scene, LABELLED, system)


def test_a_declared_channel_that_meets_a_limit_is_on_record(tmp_path: Path) -> None:
    """Also where the whole node has as many as it may have. The control: without that, none is."""

    async def scene(host: Host) -> None:
        host.monitor.channels.limit = 0
        await host.up()
        (denied,) = host.audit.events("deny")
        assert (denied["source"], denied["sink"], denied["port"]) == ("a", "b", "orders")
        assert "the node has its 0 channels" in str(denied["why"])

    play(tmp_path, scene)

    async def control(host: Host) -> None:
        await host.up()
        assert host.audit.events("deny") == []

    play(tmp_path, control)


def test_the_number_is_raised_by_another_file_and_needs_no_restart(tmp_path: Path) -> None:
    """The machine is the same one; the channel that was refused is bound."""

    async def scene(host: Host) -> None:
        await host.up()
        machine = host.machines["a"]
        with pytest.raises(Denied):
            await connect(host, "more")
        await up(host, TWO)
        await connect(host, "more")
        assert host.machines["a"] is machine

    play(tmp_path, scene, system=ONE)


def _problem(text: str) -> str:
    with pytest.raises(InputError) as wrong:
        parse_system(text, Path("/x/system.toml"))
    return str(wrong.value)


def test_a_file_that_gives_a_domain_more_than_it_may_have_is_wrong() -> None:
    """It says so at its line; as do shares of processors that no machine can have."""
    more = '[[channels]]\nkind = "stream"\nfrom = "a"\nto = "b"\nname = "more"\n'
    assert "domain 'a' has 2 channels and uses, but channels = 1" in _problem(ONE + more)
    parse_system(TWO + more, Path("/x/system.toml"))
    for wrong in (MIN_CPU - 1, MAX_CPU + 1):
        assert "cpu" in _problem(ONE.replace("channels = 1", f"cpu = {wrong}"))
    system = parse_system(ONE.replace("channels = 1", "cpu = 150"), Path("/x/system.toml"))
    assert (system.domains["a"].cpu, system.domains["b"].cpu) == (150, 0)


def test_what_a_machine_is_made_with_needs_a_restart_to_change() -> None:
    """Another share of processors, or another way to boot; how many channels is the node's."""
    domain = DomainSpec("a", "red")
    assert needs_restart(domain, DomainSpec("a", "red", cpu=50)) == ["cpu"]
    assert needs_restart(domain, DomainSpec("a", "red", image="", boot="bios")) == ["image", "boot"]
    assert needs_restart(domain, DomainSpec("a", "red", channels=1)) == []


def test_the_highest_number_is_above_what_any_machine_takes_of_one_kind() -> None:
    """So that without the key a domain is bounded by its machine alone."""
    assert MAX_DOMAIN_CHANNELS > MAX_PORTS + MAX_DISKS
