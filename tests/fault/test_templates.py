"""A node that is killed while it makes a template leaves nothing in the way of the next."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.fault.test_service import process, wait_for
from tests.support.cli import Cli
from tests.support.simulated import POLICY, write_system

LOOK_S = 0.002
"""The pause between two looks for what is being written, which takes some tenths of a second."""

BOOT_S = 60.0
TRIES = 5
"""Templates that are made until one is caught while it is written: the host may be too busy."""

SYSTEM = """\
name = "small"
policy = "policy.toml"
[jail]
accept-missing = ["cgroup", "swap"]
[domains.red]
label = "red"
memory = "128M"
template = true
autostart = false
"""


def sources(cli: Cli) -> list[int]:
    """Return the node's processes that are being saved as a template."""
    return [
        pid
        for pid, line in cli.processes().items()
        if "skerry.template" in line and line.startswith("/usr/bin/qemu-system")
    ]


def pieces(shelf: Path) -> list[Path]:
    """Return what of templates is being written."""
    return list(shelf.glob(".work-*"))


def caught_writing(cli: Cli, shelf: Path) -> bool:
    """Stop the service where it writes a template; say whether it was quick enough."""
    service = process(cli, "service")
    until = time.monotonic() + BOOT_S
    while not pieces(shelf):
        assert time.monotonic() < until
        if shelf.exists() and list(shelf.iterdir()):
            return False
        time.sleep(LOOK_S)
    os.kill(service, signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{service}/stat").read_text().rpartition(") ")[2][0] == "T")
    if pieces(shelf):
        return True
    os.kill(service, signal.SIGCONT)
    return False


@pytest.mark.parametrize("writing", [False, True], ids=["while it boots", "while it writes"])
def test_a_service_that_is_killed_while_it_makes_a_template_leaves_nothing(writing: bool) -> None:
    """The machine that was being saved ends, no piece is left, and the next start makes one."""
    cli = Cli()
    shelf = cli.home / "state/templates"
    try:
        cli.ok("up", write_system(cli.home, SYSTEM, POLICY), "--detach")
        starting = cli.popen("start", "red")
        if writing:
            for _ in range(TRIES):
                if caught_writing(cli, shelf):
                    break
                starting.communicate(timeout=BOOT_S)
                cli.ok("stop", "red")
                cli.ok("image", "template", "remove", next(shelf.iterdir()).name)
                starting = cli.popen("start", "red")
            assert pieces(shelf), "what the next node has to remove"
        else:
            wait_for(lambda: bool(sources(cli)))
        os.kill(process(cli, "service"), signal.SIGKILL)
        starting.communicate(timeout=BOOT_S)
        wait_for(lambda: cli.run("ps").returncode == 0)
        wait_for(lambda: not sources(cli))
        assert not shelf.exists() or list(shelf.iterdir()) == []
        cli.ok("start", "red")
        assert cli.ok("exec", "red", "--", "hostname") == "red\n"
        assert len(list(shelf.iterdir())) == 1
        assert not sources(cli)
    finally:
        cli.down()
