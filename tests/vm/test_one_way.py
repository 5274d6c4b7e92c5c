"""One-way streams between real machines, by the command line: the example `diode` and what breaks.

The tests run in their order on one node; each leaves the channel `up` carrying.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, left_of, sh

SYSTEM = Path(__file__).parents[2] / "examples/diode/system.toml"
WAIT_S = 20.0


@pytest.fixture(scope="module")
def diode() -> Iterator[Cli]:
    """The example, running."""
    cli = Cli()
    try:
        cli.ok("up", str(SYSTEM), "--detach")
        yield cli
    finally:
        cli.down()


def later(cli: Cli, domain: str, script: str) -> None:
    """Start a script in a guest and leave it running."""
    sh(cli, domain, f"({script}) > /dev/null 2>&1 &")


def port(name: str) -> str:
    """Return the path of a port in a guest."""
    return f"/dev/virtio-ports/{name}"


def ports(cli: Cli, domain: str) -> set[str]:
    """Return the ports that a guest has."""
    return set(sh(cli, domain, "ls /dev/virtio-ports").split())


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.1)


def carries(cli: Cli, name: str) -> None:
    """Let a word cross, and nothing but it."""
    word = f"w{time.monotonic_ns()}"
    until(lambda: name in ports(cli, "low") & ports(cli, "high"))
    later(cli, "low", f"echo {word} > {port(name)}")
    assert sh(cli, "high", f"timeout {WAIT_S:g} head -n 1 {port(name)}") == word


def connect(cli: Cli, name: str, *more: str) -> str:
    """Bind another stream from low to high, and return its number once both have its port."""
    number = cli.ok("connect", "low", "high", "--one-way", "--name", name, *more).strip()
    until(lambda: name in ports(cli, "low") & ports(cli, "high"))
    return number


def running(cli: Cli, *words: str) -> dict[int, str]:
    """Return the node's processes whose command line has all these words."""
    return {p: line for p, line in cli.processes().items() if all(w in line for w in words)}


@contextlib.contextmanager
def frozen(cli: Cli, domain: str) -> Iterator[None]:
    """Let the QEMU of a domain, and its jail, do nothing for the length of the block."""
    pids = running(cli, "qemu-system", f"-name {domain} ")
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_file_goes_up_whole(diode: Cli) -> None:
    """Its digest is the same on both sides; the port was there from the boot on."""
    digest = sh(diode, "low", "head -c 3000000 /dev/urandom > /tmp/f; sha256sum < /tmp/f")
    later(diode, "low", f"cat /tmp/f > {port('up')}")
    assert sh(diode, "high", f"head -c 3000000 {port('up')} | sha256sum") == digest


def test_nothing_comes_back(diode: Cli) -> None:
    """What high writes vanishes, and low, which reads meanwhile, gets nothing."""
    later(diode, "low", f"timeout 4 cat {port('up')} > /tmp/got")
    sh(diode, "high", f"echo back > {port('up')}")
    time.sleep(5)
    assert sh(diode, "low", "wc -c < /tmp/got") == "0"
    carries(diode, "up")


def test_the_policy_lets_no_channel_carry_back(diode: Cli) -> None:
    """Neither the other way nor both ways. The control: one more of the way up is bound."""
    assert "[TE-NO-RULE]" in diode.denied("connect", "high", "low", "--one-way")
    assert "[TE-NO-RULE]" in diode.denied("connect", "low", "high")
    number = connect(diode, "second")
    carries(diode, "second")
    diode.ok("cut", number)


def test_a_cut_ends_the_sinks_reading_and_takes_both_ports(diode: Cli) -> None:
    """High reads while low writes on and on: it gets the end, and nothing after it."""
    number = connect(diode, "flood")
    later(diode, "high", f"cat {port('flood')} | tail -c 100 > /tmp/end; echo over > /tmp/over")
    writer = f"while :; do head -c 3000 /dev/zero; done > {port('flood')}"
    later(diode, "low", f"timeout 20 sh -c '{writer}'")
    time.sleep(2)
    diode.ok("cut", number)
    until(lambda: sh(diode, "high", "cat /tmp/over 2> /dev/null; true") == "over")
    assert sh(diode, "high", "wc -c < /tmp/end") == "100", "the control: bytes had come before"
    until(lambda: "flood" not in ports(diode, "low") | ports(diode, "high"))
    assert not running(diode, "skerry.channel.relay", "r/" + number)
    carries(diode, "up")


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "control"])
def test_a_frozen_sink_gets_nothing_after_the_cut(diode: Cli, cut: bool) -> None:
    """What waits for a frozen QEMU at the cut does not reach its guest after the thaw."""
    number = connect(diode, "ice")
    later(diode, "high", f"timeout 8 cat {port('ice')} > /tmp/ice")
    time.sleep(0.5)
    with frozen(diode, "high"):
        sh(diode, "low", f"echo secret > {port('ice')}")
        time.sleep(0.5)
        if cut:
            assert "7 queued bytes" in diode.ok("cut", number)
    time.sleep(1)
    assert sh(diode, "high", "wc -c < /tmp/ice") == ("0" if cut else "7")
    if not cut:
        diode.ok("cut", number)
    until(lambda: "ice" not in ports(diode, "low") | ports(diode, "high"))


@pytest.mark.parametrize("overflow", ["block", "drop"])
def test_a_sink_that_does_not_read_holds_the_source_or_loses(diode: Cli, overflow: str) -> None:
    """With `block` a writer of 64 MB is still at it after some seconds, with `drop` it is done.

    (The guest itself takes some 32 MB: its port has 1024 buffers.)"""
    number = connect(diode, "slow", "--overflow", overflow)
    with frozen(diode, "high"):
        write = f"timeout 8 dd if=/dev/zero of={port('slow')} bs=32k count=2000 2> /dev/null"
        done = sh(diode, "low", f"{write}; echo $?")
    assert (done == "0") is (overflow == "drop")
    diode.ok("cut", number)
    until(lambda: "slow" not in ports(diode, "low") | ports(diode, "high"))
    carries(diode, "up")


def test_a_killed_service_interrupts_nothing(diode: Cli) -> None:
    """The relay and the channel go on under the next service, which can cut it as well."""
    number = connect(diode, "third")
    relays = running(diode, "skerry.channel.relay")
    assert len(relays) == 4, "two relays, each a jail and what runs in it"
    (service,) = (
        running(diode, "-m skerry.control.service").keys()
        - running(diode, "skerry.supervisor.main").keys()
    )
    os.kill(service, signal.SIGKILL)
    until(
        lambda: not left_of({service: running(diode, "skerry.control.service").get(service, "-")})
    )
    until(lambda: diode.run("ps").returncode == 0)
    assert running(diode, "skerry.channel.relay") == relays
    assert {row["port"]: row["one_way"] for row in diode.rows("channels")} == {
        "up": True,
        "third": True,
    }
    carries(diode, "up")
    carries(diode, "third")
    diode.ok("cut", number)
    until(lambda: "third" not in ports(diode, "low") | ports(diode, "high"))
    assert len(running(diode, "skerry.channel.relay")) == 2
    number = connect(diode, "fourth")
    carries(diode, "fourth")
    diode.ok("cut", number)


def test_a_killed_relay_is_a_cut_channel_and_no_more(diode: Cli) -> None:
    """Both machines go on, and the trail says why the channel is gone."""
    before = running(diode, "skerry.channel.relay")
    number = connect(diode, "lost")
    jail = min(running(diode, "skerry.channel.relay").keys() - before.keys())
    os.kill(jail, signal.SIGKILL)
    until(lambda: int(number) not in [row["id"] for row in diode.rows("channels")])
    cuts = [r["fields"] for r in diode.rows("audit", "tail", "-n", "20") if r["event"] == "cut"]
    assert ("its relay or helper has ended", int(number)) in [
        (c["why"], c["channel"]) for c in cuts
    ]
    until(lambda: "lost" not in ports(diode, "low") | ports(diode, "high"))
    carries(diode, "up")


def test_a_killed_sink_is_nothing_to_the_source(diode: Cli) -> None:
    """Low keeps its port and can write; high, started anew, gets a channel of its own."""
    diode.ok("kill", "high")
    assert "up" in ports(diode, "low")
    sh(diode, "low", f"echo unheard > {port('up')}")
    (row,) = diode.rows("channels")
    assert row["state"] == "stranded"
    steps = diode.rows("plan", str(SYSTEM))
    plan = {(step["action"], step["what"]) for step in steps if step.get("event") == "plan"}
    assert plan >= {("start", "high"), ("bind", "low → high (up)")}
    diode.ok("up", str(SYSTEM))
    sh(diode, "high", "true")
    (again,) = diode.rows("channels")
    assert (again["state"], again["port"]) == ("live", "up")
    assert again["id"] != row["id"]
    carries(diode, "up")


def test_down_leaves_no_relay(diode: Cli) -> None:
    """Everything that was started ends, and the trail holds."""
    before = diode.processes()
    assert running(diode, "skerry.channel.relay"), "the control"
    diode.ok("down")
    until(lambda: left_of(before) == {})
    diode.ok("audit", "verify")
