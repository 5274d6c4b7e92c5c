"""A switch with three real guests, by the command line.

The tests run in their order on one node; each leaves all three on the switch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support import switches
from tests.support.cli import Cli, left_of, sh
from tests.support.lan import (
    begin,
    cards,
    cut_reasons,
    flooding,
    frozen,
    kill_service,
    number_of,
    raise_card,
    reaches,
    running,
    silent,
    until,
)

NAMES = switches.NAMES[:3]
ADDRESS = {name: f"10.0.0.{number}" for number, name in enumerate(NAMES, 1)}
PROCESS = "skerry.device.switch.engine"


@pytest.fixture(scope="module")
def net() -> Iterator[Cli]:
    """Three guests that use one switch from the start."""
    cli = begin(switches.policy(), switches.system())
    try:
        for name in NAMES:
            raise_card(cli, name, "lan", ADDRESS[name])
        yield cli
    finally:
        cli.down()


def whole(cli: Cli) -> bool:
    """Say whether all three reach one another."""
    return all(
        reaches(cli, one, ADDRESS[other])
        for one, other in (("one", "two"), ("one", "three"), ("two", "three"))
    )


def join(cli: Cli, *names: str) -> None:
    """Let guests join that are not on the switch."""
    for name in names:
        until(lambda name=name: not cards(cli, name))  # type: ignore[misc]
        cli.ok("connect", name, "lan", "--name", "lan")
        raise_card(cli, name, "lan", ADDRESS[name])


def members(cli: Cli) -> set[str]:
    """Return who is on the switch."""
    return {row["source"] for row in cli.rows("channels") if row["kind"] == "switch"}


def test_all_members_reach_one_another_through_one_process(net: Cli) -> None:
    """A jail and what runs in it; each has the right peers, and files go through whole."""
    assert len(running(net, PROCESS)) == 2
    assert whole(net)
    sh(net, "one", "mkdir /tmp/w; head -c 1000000 /dev/urandom > /tmp/w/f")
    sh(net, "one", f"httpd -p {ADDRESS['one']}:80 -h /tmp/w")
    digest = sh(net, "one", "sha256sum /tmp/w/f").split()[0]
    for name in ("two", "three"):
        got = sh(net, name, f"wget -q -O - http://{ADDRESS['one']}/f | sha256sum")
        assert got.split()[0] == digest


def test_a_cut_under_load_takes_one_member_and_no_other(net: Cli) -> None:
    """It floods, and is gone at once; the others go on."""
    with flooding(net, "two", ADDRESS["one"]):
        net.ok("cut", str(number_of(net, "two", "lan")))
        until(lambda: not cards(net, "two"))
        assert reaches(net, "one", ADDRESS["three"])
        assert silent(net, "one", ADDRESS["two"])
    join(net, "two")
    assert whole(net)


def test_a_frozen_member_does_not_stall_the_rest(net: Cli) -> None:
    """Others send to it and to everyone meanwhile; after the thaw it is a member as before."""
    with (
        frozen(net, "qemu-system", "-name three "),
        flooding(net, "one", ADDRESS["three"]),
    ):
        assert reaches(net, "one", ADDRESS["two"])
        assert reaches(net, "two", ADDRESS["one"])
    assert whole(net)


def test_who_becomes_what_a_member_may_not_talk_with_leaves(net: Cli) -> None:
    """He alone, before the relabel returns; he can't come back as what he is. The others stay."""
    number = number_of(net, "three", "lan")
    assert str(number) in net.ok("relabel", "three", switches.label("apart"))
    assert members(net) == {"one", "two"}
    assert "it may not talk" in cut_reasons(net)[number or 0]
    assert "[TE-NO-RULE]" in net.denied("connect", "three", "lan", "--name", "lan")
    denials = [r for r in net.rows("audit", "tail", "-n", "20") if r["event"] == "deny"]
    assert denials[-1]["fields"]["switch"] == "lan"
    assert denials[-1]["fields"]["why"]["code"] == "TE-NO-RULE"
    assert silent(net, "one", ADDRESS["three"])
    assert reaches(net, "one", ADDRESS["two"])
    net.ok("relabel", "three", switches.label("three"))
    join(net, "three")
    assert whole(net)


def test_a_policy_that_keeps_two_apart_cuts_both(net: Cli) -> None:
    """As the dry run foretold; the third keeps its card, and one of the two can come back."""
    (net.home / "less.conf").write_text(switches.policy((("one", "three"), ("two", "three"))))
    foretold = net.rows("policy", "load", str(net.home / "less.conf"), "--dry-run")[0]
    assert members(net) == set(NAMES)
    done = net.rows("policy", "load", str(net.home / "less.conf"))[0]
    assert members(net) == {"three"}
    assert sorted(c["channel"] for c in done["cut"]) == sorted(
        c["channel"] for c in foretold["cut"]
    )
    assert all("[TE-NO-RULE]" in c["why"] for c in done["cut"])
    assert cards(net, "three") == {"lan"}
    join(net, "one")
    assert reaches(net, "one", ADDRESS["three"])
    assert "[TE-NO-RULE]" in net.denied("connect", "two", "lan", "--name", "lan")
    net.ok("policy", "load", str(net.home / "policy.conf"))
    join(net, "two")
    assert whole(net)


def test_a_killed_switch_cuts_every_member_and_no_domain(net: Cli) -> None:
    """It is on record; the domains live on, and another process serves those who come again."""
    numbers = [number_of(net, name, "lan") for name in NAMES]
    os.kill(min(running(net, PROCESS)), signal.SIGKILL)
    until(lambda: not members(net))
    assert {cut_reasons(net)[number or 0] for number in numbers} == {"the switch has ended"}
    join(net, *NAMES)
    assert whole(net)


def test_a_frozen_switch_is_cut_without_being_asked(net: Cli) -> None:
    """The node goes on at its pace, and so do the guests."""
    with frozen(net, PROCESS):
        assert silent(net, "one", ADDRESS["two"])
        net.ok("cut", str(number_of(net, "one", "lan")))
        assert members(net) == {"two", "three"}
    join(net, "one")
    assert whole(net)


def test_a_killed_service_interrupts_no_switch(net: Cli) -> None:
    """Its members go on with another process, under the same policy, and can still be cut."""
    kill_service(net)
    assert members(net) == set(NAMES)
    assert len(running(net, PROCESS)) == 2
    assert whole(net)
    net.ok("cut", str(number_of(net, "two", "lan")))
    join(net, "two")
    assert whole(net)


def test_with_its_last_member_the_process_ends(net: Cli) -> None:
    """Stopped domains leave the switch at once; nothing is left at the end."""
    for name in NAMES[1:]:
        net.ok("kill", name)
    assert members(net) == {"one"}
    net.ok("cut", str(number_of(net, "one", "lan")))
    until(lambda: not running(net, PROCESS))
    before = net.processes()
    net.ok("down")
    until(lambda: left_of(before) == {})
    net.ok("audit", "verify")
