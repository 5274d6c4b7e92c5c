"""Resources of a running system: bound at `up`, given and taken, and changed by another file."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import Denied, InputError, NotFound, StateError
from skerry.label import Label
from skerry.node.written import Written
from skerry.policy.source import NewPolicy
from skerry.wire import control as wire
from tests.support.reconciling import OPERATED, ports, up
from tests.unit.control.test_calls import POLICY, Client, Host, play

LABELLED = (
    POLICY
    + """[resources.red-disk]
ste = "red"
[resources.blue-disk]
ste = "blue"
"""
)
DISK = """[resources.vault]
kind = "disk"
label = "red-disk"
file = "vault.img"
"""
USED = OPERATED.replace(
    '[domains.a]\nlabel = "red"', '[domains.a]\nuses = ["vault"]\nlabel = "red"'
)
SYSTEM = USED + DISK


def test_what_a_domain_uses_is_bound_at_up_and_listed(tmp_path: Path) -> None:
    """By ACM's resource label; one with no type in common is refused with its explanation."""

    async def scene(host: Host) -> None:
        await host.up()
        bound = [event for event in host.events if event["event"] == "bound"]
        assert [(event["kind"], event["sink"]) for event in bound] == [
            ("stream", "b"),
            ("disk", "vault"),
        ]
        rows = await host.node.channels(host.node.setup.owner)
        assert {row["port"] for row in rows} == {"orders", "vault"}

    play(tmp_path, scene, LABELLED, SYSTEM)


def test_a_resource_that_shares_no_type_is_refused_at_up(tmp_path: Path) -> None:
    """The domain runs without it; the refusal names both labels."""

    async def scene(host: Host) -> None:
        refused = await host.node.up(lambda event: None)
        assert [refusal.what for refusal in refused] == ["disk vault for a"]
        assert "resource label blue-disk {blue}" in refused[0].text
        assert not host.disks["vault"].minted

    blue = SYSTEM.replace("red-disk", "blue-disk")
    play(tmp_path, scene, LABELLED, blue)


@pytest.mark.parametrize("boot", ["bios", "kernel"])
def test_a_domain_never_boots_another_disk_than_its_first(tmp_path: Path, boot: str) -> None:
    """Where that is refused it gets none, and is told why; the control boots no disk at all."""

    async def scene(host: Host) -> None:
        refused = await host.node.up(lambda event: None)
        other = ["disk data for a"] if boot == "bios" else []
        assert [refusal.what for refusal in refused] == ["disk vault for a", *other]
        assert ("data" in ports(host)) is (boot == "kernel")
        if boot == "bios":
            assert "a has not got vault, the disk that it boots" in refused[1].text

    data = DISK.replace("vault", "data")
    system = SYSTEM.replace("red-disk", "blue-disk") + data
    system = system.replace('uses = ["vault"]', f'boot = "{boot}"\nuses = ["vault", "data"]')
    system = system.replace('machine = "simulator"\n', "", 1)  # the host makes one all the same
    play(tmp_path, scene, LABELLED, system)


def test_a_label_that_the_policy_has_for_no_resource_is_a_mistake_of_the_file(
    tmp_path: Path,
) -> None:
    """A domain's label is no resource's."""

    async def scene(host: Host) -> None:
        raise AssertionError("it is never made")

    with pytest.raises(InputError, match="defines no label 'red' for resources"):
        play(tmp_path, scene, LABELLED, SYSTEM.replace("red-disk", "red"))


def test_a_use_is_cut_and_given_again_by_who_may(tmp_path: Path) -> None:
    """`connect DOMAIN RESOURCE`; the helper, who has no type of the resource's domain, may not."""

    async def scene(host: Host) -> None:
        await host.up()
        number = ports(host)["vault"]
        await host.handle(wire.Cut(number), Client("op"))
        assert host.disks["vault"].minted[0][2].gone
        again = await host.handle(wire.Connect("a", "vault", port="vault"), Client("op"))
        assert isinstance(again, dict)
        assert again["kind"] == "disk"
        with pytest.raises(NotFound) as error:
            await host.handle(wire.Connect("a", "volt"), Client("op"))
        assert str(error.value) == (
            "there is no domain or resource volt; the file has: a, b, and the resources vault"
        )
        with pytest.raises(NotFound) as error:  # a source is a domain
            await host.handle(wire.Connect("volt", "vault"), Client("op"))
        assert str(error.value) == "there is no domain volt; the file has: a, b"
        await host.handle(wire.Relabel("a", "blue"), Client("op"))
        assert "vault" not in ports(host)
        with pytest.raises(Denied):
            await host.handle(wire.Connect("a", "vault"), Client("op"))

    play(tmp_path, scene, LABELLED, SYSTEM)


def test_a_tpm_is_not_given_to_a_running_domain_and_the_way_to_it_is_said(tmp_path: Path) -> None:
    """The chip stays nobody's: nothing of it is made."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(StateError, match="from its start on") as error:
            await host.handle(wire.Connect("a", "chip"), Client("op"))
        assert "`uses` of a" in error.value.fix
        assert not host.disks["chip"].minted

    chip = '[resources.chip]\nkind = "tpm"\nlabel = "red-disk"\n'
    play(tmp_path, scene, LABELLED, SYSTEM + chip)


def test_who_wrote_is_kept_under_the_names_of_the_policy_in_force(tmp_path: Path) -> None:
    """A load renames a writer: what is written down from then on is under the new policy's name,
    also where that gave the old one to another label."""

    async def scene(host: Host) -> None:
        path = tmp_path / "written.json"
        node, disk = host.node, f"disk:{tmp_path}/vault.img"
        node.resources._written = Written(path)
        await host.up()
        await node.resources.save()
        red, crimson = (Label((("acm", name),)) for name in ("red", "crimson"))
        assert Written(path).of(disk, node.setup.stack) == {red}
        update = 'version = "2.0"\nfrom = { name = "calls", version = "1.0" }'
        policy = LABELLED.replace('version = "1.0"', update)
        policy = policy.replace("[labels.red]", '[labels.crimson]\nfrom = "red"')
        policy = policy.replace("[labels.helper]", '[labels.red]\nfrom = "helper"')
        change = NewPolicy(str(tmp_path / "policy.toml"), policy.encode(), b"")
        await node.load("policy_load", node.setup.owner, change, what="renames")
        node.resources._made["vault"][1].written |= {red}
        await node.resources.save()
        assert Written(path).of(disk, node.setup.stack) == {red, crimson}

    play(tmp_path, scene, LABELLED, SYSTEM)


def test_a_file_that_changes_a_resource_cuts_its_uses_and_binds_them_anew(tmp_path: Path) -> None:
    """What is the same goes on; what is another one is never reached by an old use."""

    async def scene(host: Host) -> None:
        await host.up()
        old, number = host.disks["vault"], ports(host)["vault"]
        assert (await up(host, SYSTEM, LABELLED)).answer["changed"] is False
        result = await up(host, SYSTEM.replace("vault.img", "other.img"), LABELLED)
        assert result.plan[0] == f"cut channel {number}: a uses vault (disk)"
        assert "change resources" in result.plan
        assert result.answer["left"] == []
        assert old.minted[0][2].gone
        assert host.disks["vault"] is not old
        assert len(host.disks["vault"].minted) == 1
        gone = await up(host, OPERATED, LABELLED)
        assert gone.answer["left"] == []
        assert set(ports(host)) == {"orders"}
        assert not host.monitor.resources

    play(tmp_path, scene, LABELLED, SYSTEM)


@pytest.mark.parametrize("change", ["label", "none"])
def test_a_tpm_with_another_label_is_had_by_a_domain_that_is_started_anew(
    tmp_path: Path, change: str
) -> None:
    """The running one would lose it and could not get it back; the control changes nothing."""

    async def scene(host: Host) -> None:
        await host.up()
        before = host.monitor.domain("a")
        other = chip.replace("red-disk", "red-chip") if change == "label" else chip
        result = await up(host, system + other, policy)
        assert (host.monitor.domain("a") is not before) is (change == "label")
        assert ("restart a" in result.plan) is (change == "label")
        label = str(host.monitor.resources["chip"].label)
        assert label == f"resource:red-{'chip' if change == 'label' else 'disk'}"

    policy = LABELLED + '[resources.red-chip]\nste = "red"\n'
    chip = '[resources.chip]\nkind = "tpm"\nlabel = "red-disk"\n'
    system = SYSTEM.replace('uses = ["vault"]', 'uses = ["vault", "chip"]')
    play(tmp_path, scene, policy, system + chip)


def test_who_may_not_load_a_policy_defines_no_resource(tmp_path: Path) -> None:
    """A resource is the owner's, as a domain's label is."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(Denied):
            await up(host, SYSTEM, LABELLED, uid=4_000_000)
        assert not host.monitor.resources

    play(tmp_path, scene, LABELLED, OPERATED)


def test_an_assertion_holds_over_resources_too(tmp_path: Path) -> None:
    """What one domain writes to a disk that the other reads flows; `except` may name the disk."""
    policy = LABELLED.replace('ste = ["blue", "all"]', 'ste = ["blue"]')
    policy += '[resources.both]\nste = "all"\n'
    policy = policy.replace('[labels.blue]\nste = ["blue"]', '[labels.blue]\nste = ["blue", "all"]')

    async def scene(host: Host) -> None:
        from skerry.node.assertions import violations

        found = violations(host.node.setup)
        assert [violation.path for violation in found] == [("a", "vault")]

    system = SYSTEM + '[[assert]]\nnever = "a -> vault"\n'
    play(tmp_path, scene, policy, system)
