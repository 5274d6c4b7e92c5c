"""The real service killed under real machines: they go on, and so does all that was promised.

The short form kills one service, `./run fault` ten, each at a moment that the seed chooses.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fault.test_service import process, wait_for
from tests.support.cli import Cli
from tests.support.simulated import POLICY, SYSTEM, write_system

LONG = bool(os.environ.get("SKERRY_LONG"))
SEED = int(os.environ.get("SKERRY_FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
ACCEPT = '\n[jail]\naccept-missing = ["cgroup", "swap"]\n'
KILLS = 10 if LONG else 1
MAX_LIVE = 6
"""Channels beside `orders`: each takes memory of both guests' kernels."""

LOAD_S = 12.0
"""How long a load may take though a machine does not drop its end, in seconds."""

HEALTHY_S = 10.0
"""A service that lived so long has not failed in a row with the one before it."""


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """`red` and `broker` on real machines, with the channel `orders`."""
    cli = Cli()
    clerk = SYSTEM.index("[domains.clerk]")
    system = SYSTEM[:clerk] + SYSTEM[clerk:].replace(
        'machine = "simulator"', 'machine = "simulator"\nautostart = false', 1
    )
    system = system.replace('machine = "simulator"', 'memory = "192M"')
    cli.ok("up", write_system(cli.home, system + ACCEPT), "--detach")
    yield cli
    cli.down()


class Commands(threading.Thread):
    """Random commands until told to stop, and what was answered."""

    def __init__(self, cli: Cli, seed: int) -> None:
        super().__init__(daemon=True)
        self.live: dict[int, str] = {}  # acknowledged channels and their ports
        self.cut: set[int] = set()
        self.doubtful: set[int] = set()  # a cut that was not answered
        self.over = threading.Event()
        self.done = 0
        self._cli = cli
        self._chance = random.Random(seed)

    def run(self) -> None:
        """Ask, one after the other."""
        while not self.over.is_set():
            kind = self._chance.randrange(5)
            if kind < 2 and len(self.live) < MAX_LIVE:
                port = f"p{self._chance.randrange(1 << 32):x}"
                done = self._cli.run("connect", "red", "broker", "--name", port)
                if done.returncode == 0:
                    self.live[int(done.stdout)] = port
            elif kind == 2 and self.live:
                number = self._chance.choice(list(self.live))
                del self.live[number]
                done = self._cli.run("cut", str(number))
                (self.cut if done.returncode == 0 else self.doubtful).add(number)
            elif kind == 3:
                done = self._cli.run("policy", "load", str(self._cli.home / "policy.toml"))
            else:
                done = self._cli.run("exec", "red", "--", "true")
            self.done += done.returncode == 0


def crosses(cli: Cli, source: str, sink: str, port: str) -> bool:
    """Say whether a word written in one guest comes out in the other."""
    word = f"w{random.randrange(1 << 32):x}"
    cli.ok("exec", source, "--", "sh", "-c", f"echo {word} > /dev/virtio-ports/{port}")
    read = f"timeout 20 head -n1 /dev/virtio-ports/{port}"
    return cli.ok("exec", sink, "--", "sh", "-c", read).strip() == word


def ports(cli: Cli, domain: str) -> set[str]:
    """Return the ports that a guest has, but for its agent's."""
    found = cli.ok("exec", domain, "--", "ls", "/dev/virtio-ports").split()
    return {port for port in found if "skerry" not in port}


def test_a_frozen_qemu_gets_no_byte_of_a_channel_that_a_policy_refused(node: Cli) -> None:
    """Its queue is full when the policy is loaded; after the thaw nothing of it arrives, and the
    ports that it did not give up in time are taken from it.

    The control: what is written to a QEMU that was frozen and is not cut does arrive.
    """
    refusing = node.home / "refusing.toml"
    trade = '[labels.red]\nste = ["trade", "books"]'
    assert trade in POLICY
    refusing.write_text(POLICY.replace(trade, '[labels.red]\nste = ["books"]'))
    for policy, arrives in ((node.home / "policy.toml", True), (refusing, False)):
        port = f"f{arrives:d}"
        node.ok("connect", "red", "broker", "--name", port)
        wait_for(lambda port=port: port in ports(node, "broker"))  # type: ignore[misc]
        reader = f"head -c 5 < /dev/virtio-ports/{port} > /tmp/{port}; echo over >> /tmp/{port}"
        node.ok("exec", "broker", "--", "sh", "-c", f"({reader}) > /dev/null 2>&1 &")
        frozen = [p for p, line in node.processes().items() if _is_qemu(line, "broker")]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            fill = f"timeout 2 cat /dev/zero > /dev/virtio-ports/{port}; true"
            node.ok("exec", "red", "--", "sh", "-c", fill)
            began = time.monotonic()
            node.ok("policy", "load", str(policy))
            took = time.monotonic() - began
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert took < LOAD_S
        got = f"sleep 2; wc -c < /tmp/{port}"
        read = int(node.ok("exec", "broker", "--", "sh", "-c", got))
        assert read == (len("12345over\n") if arrives else len("over\n"))
    wait_for(lambda: ports(node, "broker") == set(), 30.0)
    node.ok("policy", "load", str(node.home / "policy.toml"))
    for row in node.rows("channels"):
        node.ok("cut", str(row["id"]))
    node.ok("connect", "red", "broker", "--name", "orders")


def _is_qemu(line: str, domain: str) -> bool:
    return "qemu-system" in line and f"-name {domain} " in line


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_service_interrupts_nothing(node: Cli, kill: int) -> None:
    """Machines run on; what was acknowledged holds; every live channel carries both ways."""
    chance = random.Random(SEED + kill)
    qemus = {pid for pid, line in node.processes().items() if "qemu-system" in line}
    commands = Commands(node, SEED + kill)
    commands.live = {
        row["id"]: row["port"] for row in node.rows("channels") if row["port"] != "orders"
    }
    commands.start()
    time.sleep(1 + 2 * chance.random())
    service = process(node, "service")
    os.kill(service, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: service not in node.processes())
    commands.over.set()
    commands.join(60)
    assert not commands.is_alive()
    assert commands.done
    wait_for(lambda: node.run("ps").returncode == 0)
    assert process(node, "service") != service
    assert qemus == {p for p, line in node.processes().items() if "qemu-system" in line}
    # The machines are starting until they have answered the new service.
    wait_for(lambda: all(row["state"] != "starting" for row in node.rows("ps")))
    states = {row["name"]: row["state"] for row in node.rows("ps")}
    assert (states["red"], states["broker"]) == ("running", "running"), f"seed {SEED + kill}"
    rows = {row["id"]: row["port"] for row in node.rows("channels")}
    assert rows.items() >= commands.live.items(), f"seed {SEED + kill}: {rows} {commands.live}"
    assert not rows.keys() & commands.cut, f"seed {SEED + kill}"
    assert "orders" in rows.values()
    wait_for(lambda: ports(node, "red") == ports(node, "broker") == set(rows.values()))
    for port in rows.values():
        assert crosses(node, "red", "broker", port)
        assert crosses(node, "broker", "red", port)
    node.ok("audit", "verify")
    assert node.rows("audit", "tail", "-n", "400"), "the control"
    for number in [row for row in rows if rows[row] != "orders"]:
        node.ok("cut", str(number))
    if kill + 1 < KILLS:
        time.sleep(max(0.0, HEALTHY_S - (time.monotonic() - killed)))


def test_down_leaves_nothing_of_a_system_whose_service_was_killed(node: Cli) -> None:
    """Neither a process nor a word of what stood; the trail of all lives holds."""
    assert process(node, "service")
    assert len(node.processes()) > 3
    node.ok("down")
    wait_for(lambda: node.processes() == {})
    node.ok("audit", "verify")
    events = [row["event"] for row in node.rows("audit", "tail", "-n", "2000")]
    assert events.count("recovered-node") == KILLS
    left = {path.name for path in (node.home / "state").iterdir()}
    assert not {name for name in left if name.startswith(("journal", "setup-"))}
