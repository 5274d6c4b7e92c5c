"""An uplink from inside a real guest: what it leads to, what not, and what ends it.

The outside is a server and a name server on the loopback. The tests run in their order on one node;
each leaves the uplink `web` working.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from skerry.device.uplink import allow, denials, gate
from skerry.device.uplink.words import GATEWAY
from tests.support.cli import Cli, left_of
from tests.support.uplink import HTTP, ByteServer, NameServer

WAIT_S = 20.0
POLICY = """
[policy]
name = "uplink"
version = "1.0"
bootstrap = "SystemManagement"
[simple-type-enforcement]
types = ["SystemManagement", "web", "inside"]
[labels.SystemManagement]
ste = ["SystemManagement", "web", "inside"]
[labels.agent]
ste = ["web"]
[labels.keeper]
ste = ["inside"]
[resources.outside]
ste = "web"
"""
SYSTEM = """
name = "uplink"
policy = "policy.toml"
[jail]
accept-missing = ["cgroup", "swap"]
[domains.agent]
label = "agent"
uses = ["web"]
[domains.keeper]
label = "keeper"
machine = "simulator"
[resources.web]
kind = "uplink"
label = "outside"
allow = ["127.0.0.1:{web}", "web.test:{web}", "127.0.0.1:{flood}", "meta.test:80", "turned.test:80"]
resolvers = ["{names}"]
"""
ZONE = {"web.test": ["127.0.0.1"], "meta.test": ["169.254.169.254"], "turned.test": ["10.0.0.1"]}


class Outside(NamedTuple):
    """What there is outside, and the system."""

    cli: Cli
    web: ByteServer
    other: ByteServer
    flood: ByteServer
    names: NameServer


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    """The system, running, with its uplink up."""
    cli = Cli()
    with contextlib.ExitStack() as stack:
        stack.callback(cli.down)
        web, other = ByteServer(HTTP), ByteServer(HTTP)
        flood, names = ByteServer(endless=True), NameServer(ZONE)
        for each in (web, other, flood, names):
            stack.enter_context(contextlib.closing(each))
        (cli.home / "policy.toml").write_text(POLICY)
        system = SYSTEM.format(web=web.port, flood=flood.port, names=names.address)
        (cli.home / "system.toml").write_text(system)
        cli.ok("up", str(cli.home / "system.toml"), "--detach")
        found = Outside(cli, web, other, flood, names)
        raise_up(found)
        yield found


def sh(outside: Outside, script: str) -> str:
    """Run a script in the guest; return what it said."""
    script = f"({script}) 2>&1"
    return outside.cli.ok("exec", "agent", "--", "timeout", "60", "sh", "-c", script).strip()


def raise_up(outside: Outside) -> None:
    """Have the guest take its address."""
    assert sh(outside, "uplink-up web") == "web"


def get(outside: Outside, host: str, port: int) -> str:
    """Let the guest ask a web server; return what it got."""
    return sh(outside, f"timeout 5 wget -q -O - http://{host}:{port}/; true")


def works(outside: Outside) -> bool:
    """Say whether the uplink leads to what it may."""
    return get(outside, "web.test", outside.web.port) == "hello"


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.1)


def number(outside: Outside) -> int:
    """Return the number of the use."""
    (row,) = [row for row in outside.cli.rows("channels") if row["port"] == "web"]
    return int(row["id"])


def again(outside: Outside) -> None:
    """Have the uplink after it was cut, and see that it works."""
    until(lambda: "web" not in sh(outside, "ls /sys/class/net").split())
    outside.cli.ok("connect", "agent", "web", "--name", "web")
    raise_up(outside)
    assert works(outside)


def refused(outside: Outside) -> list[dict[str, Any]]:
    """Return what the trail has of refusals of the use."""
    rows = outside.cli.rows("audit", "tail", "-n", "1000")
    return [row["fields"] for row in rows if row["event"] == denials.EVENT]


def told(outside: Outside, asked: str, reason: str) -> None:
    """Wait until the trail says that this was refused, for this reason."""
    until(lambda: (asked, reason) in [(r.get("asked"), r.get("reason")) for r in refused(outside)])


def processes(outside: Outside, word: str) -> list[int]:
    """Return the processes of a helper: its jail's, and what runs in it."""
    return [pid for pid, line in outside.cli.processes().items() if word in line]


HELPERS = ("passt", gate.__name__, "skerry.device.uplink.dialer")


def test_a_guest_gets_an_address_and_reaches_what_is_allowed(outside: Outside) -> None:
    """By DHCP; by name, and by the gateway's address, which stands for the host's loopback."""
    assert "inet 192.0.2.2/24" in sh(outside, "ip addr show web")
    assert works(outside)
    assert get(outside, GATEWAY, outside.web.port) == "hello"


def test_another_name_port_or_address_is_refused_and_recorded(outside: Outside) -> None:
    """Servers are there, and none hears anything. The control: what is allowed is reached."""
    before = outside.other.connections
    assert "bad address" in get(outside, "evil.test", outside.web.port)
    told(outside, "evil.test", allow.NOT_ALLOWED)
    assert "evil.test" not in outside.names.asked
    assert "hello" not in get(outside, GATEWAY, outside.other.port)
    told(outside, f"127.0.0.1:{outside.other.port}", gate.PORT)
    assert "hello" not in get(outside, "93.184.216.34", outside.web.port)
    told(outside, f"93.184.216.34:{outside.web.port}", allow.NO_NAME)
    sh(outside, "timeout 3 nslookup secret.evil.test 8.8.8.8; true")
    told(outside, "8.8.8.8:53/udp", gate.UDP)
    assert "100% packet loss" in sh(outside, f"ping -c 1 -W 1 {GATEWAY}; true")
    assert outside.other.connections == before
    (record,) = [r for r in refused(outside) if r.get("asked") == "evil.test"]
    assert (record["domain"], record["resource"]) == ("agent", "web")
    assert record["channel"] == number(outside)
    assert works(outside)


def test_the_metadata_address_and_names_that_stand_for_the_inside_are_refused(
    outside: Outside,
) -> None:
    """Asked for directly, and by names that are allowed but stand for what is not public."""
    assert get(outside, "169.254.169.254", 80) != "hello"
    told(outside, "169.254.169.254:80", allow.NO_NAME)
    for name, address in (("meta.test", "169.254.169.254"), ("turned.test", "10.0.0.1")):
        assert "bad address" in get(outside, name, 80)
        told(outside, f"{name} ({address})", allow.NOT_PUBLIC)
        assert name in outside.names.asked


def test_who_may_not_use_it_does_not_get_it(outside: Outside) -> None:
    """The policy is asked for the use as for any channel."""
    assert "[STE-NO-SHARED-TYPE]" in outside.cli.denied("connect", "keeper", "web")


def download(outside: Outside) -> None:
    """Start a download that does not end."""
    outside.flood.ended.clear()
    before = outside.flood.sent
    sh(
        outside,
        f"(setsid sh -c 'sleep 600 | nc {GATEWAY} {outside.flood.port}' > /dev/null 2>&1 &)",
    )
    until(lambda: outside.flood.sent > before + (1 << 20))


def test_a_cut_ends_a_running_download_at_once(outside: Outside) -> None:
    """The server is told by a reset, before the cut returns or as good as; the card goes."""
    download(outside)
    assert not outside.flood.ended.wait(1), "the control: it runs until the cut"
    outside.cli.ok("cut", str(number(outside)))
    assert outside.flood.ended.wait(0.5)
    assert [p for word in HELPERS for p in processes(outside, word)] == []
    again(outside)


@pytest.mark.parametrize("helper", HELPERS)
def test_a_killed_helper_is_a_cut_use_and_no_more(outside: Outside, helper: str) -> None:
    """Its connections end, the machine goes on, and the trail says why."""
    download(outside)
    channel = number(outside)
    os.kill(min(processes(outside, helper)), signal.SIGKILL)
    assert outside.flood.ended.wait(5)
    until(lambda: channel not in [row["id"] for row in outside.cli.rows("channels")])
    cuts = [
        r["fields"] for r in outside.cli.rows("audit", "tail", "-n", "30") if r["event"] == "cut"
    ]
    assert ("its relay or helper has ended", channel) in [(c["why"], c["channel"]) for c in cuts]
    again(outside)


@pytest.mark.parametrize("helper", HELPERS)
def test_a_frozen_helper_holds_nothing_but_its_use(outside: Outside, helper: str) -> None:
    """The guest waits; the node answers, and can cut it."""
    frozen = processes(outside, helper)
    assert frozen
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    assert not works(outside)
    began = time.monotonic()
    outside.cli.ok("ps")
    outside.cli.ok("cut", str(number(outside)))
    assert time.monotonic() - began < 5
    again(outside)


def test_a_flood_of_questions_is_counted_and_not_recorded(outside: Outside) -> None:
    """Many names: a few records, that say how many more there were; the rest is counted."""
    before = len(refused(outside))
    sh(
        outside,
        "i=0; while [ $i -lt 80 ]; do nslookup n$i.evil.test > /dev/null; i=$((i+1)); done",
    )
    after = refused(outside)
    assert 0 < len(after) - before <= denials.BURST + 10
    outside.cli.ok("cut", str(number(outside)))
    again(outside)


def test_a_killed_service_interrupts_nothing(outside: Outside) -> None:
    """A download goes on under the next service, which records what is refused, and can cut it."""
    cli = outside.cli
    download(outside)
    channel = number(outside)
    (service,) = set(processes(outside, "-m skerry.control.service")) - set(
        processes(outside, "skerry.supervisor.main")
    )
    os.kill(service, signal.SIGKILL)
    until(lambda: service not in cli.processes())
    until(lambda: cli.run("ps").returncode == 0)
    before = outside.flood.sent
    until(lambda: outside.flood.sent > before + (1 << 20))
    assert not outside.flood.ended.is_set()
    assert number(outside) == channel
    assert "bad address" in get(outside, "later.test", 80)
    told(outside, "later.test", allow.NOT_ALLOWED)
    (record,) = [r for r in refused(outside) if r.get("asked") == "later.test"]
    assert (record["domain"], record["channel"]) == ("agent", channel)
    cli.ok("cut", str(channel))
    assert outside.flood.ended.wait(0.5)
    again(outside)


def test_down_leaves_no_helper(outside: Outside) -> None:
    """Everything that was started ends, and the trail holds."""
    before = outside.cli.processes()
    assert all(processes(outside, word) for word in HELPERS), "the control"
    outside.cli.ok("down")
    until(lambda: left_of(before) == {})
    outside.cli.ok("audit", "verify")
