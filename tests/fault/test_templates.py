"""A node that is killed while it makes a template leaves nothing in the way of the next."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.fault.test_service import process, wait_for
from tests.support.cli import Cli
from tests.support.simulated import POLICY, write_system

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


def sources() -> list[int]:
    """Return the processes that are being saved as a template, of whatever node."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"skerry.template" in words and words.startswith(b"/usr/bin/qemu-system"):
            found.append(int(entry.name))
    return found


def test_a_service_that_is_killed_while_it_makes_a_template_leaves_nothing() -> None:
    """The machine that was being saved ends, no piece is left, and the next start makes one."""
    cli = Cli()
    try:
        cli.ok("up", write_system(cli.home, SYSTEM, POLICY), "--detach")
        before = set(sources())
        starting = cli.popen("start", "red")
        wait_for(lambda: bool(set(sources()) - before))
        os.kill(process(cli, "service"), signal.SIGKILL)
        starting.communicate(timeout=60)
        wait_for(lambda: cli.run("ps").returncode == 0)
        wait_for(lambda: not set(sources()) - before)
        shelf = cli.home / "state/templates"
        assert not shelf.exists() or list(shelf.iterdir()) == []
        cli.ok("start", "red")
        assert cli.ok("exec", "red", "--", "hostname") == "red\n"
        assert len(list(shelf.iterdir())) == 1
        assert not set(sources()) - before
    finally:
        cli.down()
