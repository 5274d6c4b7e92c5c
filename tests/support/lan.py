"""Guests with network cards, by the command line: what the tests of links and switches share."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from tests.support.cli import Cli, left_of, sh

WAIT_S = 40.0


def begin(policy: str, system: str) -> Cli:
    """Run a system whose policy is one of `tests.support.switches`."""
    cli = Cli()
    try:
        (cli.home / "policy.conf").write_text(policy)
        (cli.home / "system.toml").write_text(system)
        cli.ok("up", str(cli.home / "system.toml"), "--detach")
    except BaseException:
        cli.down()
        raise
    return cli


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.1)


def cards(cli: Cli, domain: str) -> set[str]:
    """Return the interfaces of a guest, but for its own."""
    return set(sh(cli, domain, "ls /sys/class/net").split()) - {"lo"}


def raise_card(cli: Cli, domain: str, name: str, address: str) -> None:
    """Switch a card on."""
    assert sh(cli, domain, f"link-up {name} {address}/24") == name


def reaches(cli: Cli, domain: str, address: str) -> bool:
    """Say whether an address answers a ping soon."""
    # Busybox's `-W` bounds the wait for one answer; the loop gives a first frame its chance.
    ping = f"ping -c 1 -W 2 {address} > /dev/null 2>&1"
    return sh(cli, domain, f"for i in 1 2 3 4; do {ping} && echo yes && break; done") == "yes"


def silent(cli: Cli, domain: str, address: str) -> bool:
    """Say whether an address does not answer three pings."""
    return not sh(cli, domain, f"ping -c 3 -W 1 {address} 2> /dev/null | grep 'bytes from'; true")


@contextlib.contextmanager
def flooding(cli: Cli, domain: str, address: str) -> Iterator[None]:
    """Let a guest send without end for the length of the block."""
    send = f"while [ -e /tmp/flood ]; do ping -c 1000 -s 1400 -A -W 1 {address}; done"
    sh(cli, domain, f"touch /tmp/flood; ({send}) > /dev/null 2>&1 &")
    try:
        yield
    finally:
        sh(cli, domain, "rm /tmp/flood; killall ping; true")


def running(cli: Cli, *words: str) -> dict[int, str]:
    """Return the node's processes whose command line has all these words."""
    return {p: line for p, line in cli.processes().items() if all(w in line for w in words)}


@contextlib.contextmanager
def frozen(cli: Cli, *words: str) -> Iterator[None]:
    """Let processes, and their jails, do nothing for the length of the block."""
    pids = running(cli, *words)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def kill_service(cli: Cli) -> None:
    """Kill the node, and return when the next one answers."""
    (service,) = (
        running(cli, "-m skerry.control.service").keys()
        - running(cli, "skerry.supervisor.main").keys()
    )
    os.kill(service, signal.SIGKILL)
    until(lambda: not left_of({service: running(cli, "skerry.control.service").get(service, "-")}))
    until(lambda: cli.run("ps").returncode == 0)


def number_of(cli: Cli, domain: str, port: str) -> int | None:
    """Return the channel of a domain's port, None if there is none."""
    found = [r["id"] for r in cli.rows("channels") if r["source"] == domain and r["port"] == port]
    return found[0] if found else None


def cut_reasons(cli: Cli) -> dict[int, str]:
    """Return why channels were cut lately, by number."""
    rows = cli.rows("audit", "tail", "-n", "60")
    return {r["fields"]["channel"]: r["fields"]["why"] for r in rows if r["event"] == "cut"}
