"""Ethernet links between real guests, by the command line.

The tests run in their order on one node; each leaves the link `wire` up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support import switches
from tests.support.cli import Cli, sh
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
    silent,
    until,
)

WIRE = '[[channels]]\nkind = "link"\nfrom = "one"\nto = "two"\nname = "wire"\n'
PAIRS = ("one", "two"), ("one", "three")


@pytest.fixture(scope="module")
def net() -> Iterator[Cli]:
    """Two guests with a link from the start, and a third on a board without slots."""
    cli = begin(switches.policy(PAIRS), switches.system(uses="", more=WIRE))
    try:
        raise_card(cli, "one", "wire", "10.0.0.1")
        raise_card(cli, "two", "wire", "10.0.0.2")
        yield cli
    finally:
        cli.down()


def late(cli: Cli) -> int:
    """Bind another link at run time, switched on at both ends."""
    number = int(cli.ok("connect", "one", "two", "--kind", "link", "--name", "late"))
    raise_card(cli, "one", "late", "10.0.1.1")
    raise_card(cli, "two", "late", "10.0.1.2")
    return number


def test_a_link_carries_a_file_whole(net: Cli) -> None:
    """TCP over it; the card bears the address that `channels` shows."""
    (row,) = net.rows("channels")
    assert sh(net, "one", "cat /sys/class/net/wire/address") == row["mac"]["one"]
    digest = sh(
        net, "one", "mkdir /tmp/w; head -c 2000000 /dev/urandom > /tmp/w/f; sha256sum /tmp/w/f"
    )
    sh(net, "one", "httpd -p 10.0.0.1:80 -h /tmp/w")
    got = sh(net, "two", "wget -q -O - http://10.0.0.1/f | sha256sum")
    assert got.split()[0] == digest.split()[0]


def test_a_link_that_the_policy_refuses_is_no_card(net: Cli) -> None:
    """The refusal says why. The control is the next test."""
    assert "[TE-NO-RULE]" in net.denied("connect", "two", "three", "--kind", "link")
    assert cards(net, "two") == {"wire"}


def test_a_cut_under_load_takes_the_card_from_both(net: Cli) -> None:
    """A running guest gets a card with its driver; after the cut nothing answers, all else does."""
    number = late(net)
    assert reaches(net, "one", "10.0.1.2")
    with flooding(net, "two", "10.0.1.1"), flooding(net, "one", "10.0.1.2"):
        net.ok("cut", str(number))
        until(lambda: cards(net, "one") == cards(net, "two") == {"wire"})
    assert silent(net, "one", "10.0.1.2")
    assert reaches(net, "one", "10.0.0.2")


def test_a_board_without_slots_is_refused_with_what_to_do(net: Cli) -> None:
    """The third guest has no link in the file; neither end is left anything."""
    done = net.run("connect", "one", "three", "--kind", "link")
    assert done.returncode not in (0, 3)
    assert 'board = "pc"' in done.stderr
    until(lambda: cards(net, "one") == {"wire"})
    assert [row["port"] for row in net.rows("channels")] == ["wire"]


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "control"])
def test_a_frozen_machine_gets_nothing_after_the_cut(net: Cli, cut: bool) -> None:
    """What waits for a frozen QEMU at the cut does not reach its guest after the thaw."""
    number = late(net)
    assert reaches(net, "one", "10.0.1.2")
    echoes = "grep Icmp: /proc/net/snmp | tail -n 1 | cut -d ' ' -f 10"
    before = int(sh(net, "two", echoes))
    with frozen(net, "qemu-system", "-name two "):
        assert silent(net, "one", "10.0.1.2")
        if cut:
            assert " 0 queued bytes" not in net.ok("cut", str(number))
    time.sleep(1)
    assert int(sh(net, "two", echoes)) == before + (0 if cut else 3)
    if not cut:
        net.ok("cut", str(number))
    until(lambda: cards(net, "one") == cards(net, "two") == {"wire"})


def test_a_paused_guest_loses_its_card_when_it_goes_on(net: Cli) -> None:
    """The cut waits for no guest; afterwards the link can be bound anew under its name."""
    number = late(net)
    net.ok("pause", "two")
    net.ok("cut", str(number))
    net.ok("resume", "two")
    until(lambda: cards(net, "two") == {"wire"})
    number = late(net)
    assert reaches(net, "two", "10.0.1.1")
    net.ok("cut", str(number))
    until(lambda: cards(net, "one") == cards(net, "two") == {"wire"})


def test_a_killed_service_interrupts_no_link(net: Cli) -> None:
    """It is adopted, and the next service can cut it."""
    late(net)
    kill_service(net)
    assert reaches(net, "one", "10.0.0.2")
    assert reaches(net, "one", "10.0.1.2")
    found = number_of(net, "one", "late")
    net.ok("cut", str(found))
    until(lambda: cards(net, "one") == cards(net, "two") == {"wire"})
    assert reaches(net, "one", "10.0.0.2")


def test_a_policy_that_refuses_a_link_cuts_it_before_the_load_returns(net: Cli) -> None:
    """Under load; the reason is on record, and the old policy lets it be bound again."""
    number = number_of(net, "one", "wire")
    (net.home / "none.conf").write_text(switches.policy(()))
    with flooding(net, "one", "10.0.0.2"):
        net.ok("policy", "load", str(net.home / "none.conf"))
    assert not net.rows("channels")
    assert "[TE-NO-RULE]" in cut_reasons(net)[number or 0]
    until(lambda: not cards(net, "one") | cards(net, "two"))
    net.ok("policy", "load", str(net.home / "policy.conf"))
    net.ok("connect", "one", "two", "--kind", "link", "--name", "wire")
    raise_card(net, "one", "wire", "10.0.0.1")
    raise_card(net, "two", "wire", "10.0.0.2")
    assert reaches(net, "one", "10.0.0.2")
