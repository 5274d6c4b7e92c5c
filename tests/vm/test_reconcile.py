"""Another system file for real machines: what is unchanged never notices."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.cli import Cli
from tests.support.simulated import POLICY

PAIR = """
name = "pair"
policy = "policy.toml"
[domains.one]
label = "broker"
memory = "96M"
[domains.two]
label = "broker"
memory = "96M"
[[channels]]
kind = "stream"
from = "one"
to = "two"
name = "pipe"
"""

THIRD = """
[domains.three]
label = "red"
memory = "96M"
[[channels]]
kind = "stream"
from = "one"
to = "three"
name = "more"
"""


def machines(cli: Cli) -> set[int]:
    """Return the pids of the QEMU processes themselves."""
    names = {pid: Path(f"/proc/{pid}/comm") for pid in cli.processes()}
    return {pid for pid, comm in names.items() if comm.read_text().startswith("qemu-system")}


def test_unchanged_machines_and_their_channel_go_on_through_a_reconcile() -> None:
    """A read that began before it ends with what is written after it; the processes are the same.
    The control: the domain that the file changes is another process."""
    cli = Cli()
    try:
        (cli.home / "policy.toml").write_text(POLICY)
        system = cli.home / "system.toml"
        system.write_text(PAIR)
        cli.ok("up", str(system), "--detach")
        before = machines(cli)
        assert len(before) == 2
        (pipe,) = cli.rows("channels")
        reading = cli.popen("exec", "two", "--", "head", "-c", "10", "/dev/virtio-ports/pipe")
        for text, added in ((PAIR + THIRD, 1), (PAIR + THIRD.replace("96M", "128M"), 1)):
            system.write_text(text)
            cli.ok("up", str(system))
            now = machines(cli)
            assert before < now
            assert len(now - before) == added
        assert len(cli.rows("channels")) == 2
        cli.ok("exec", "one", "--", "sh", "-c", "printf 'still here' > /dev/virtio-ports/pipe")
        assert reading.communicate(timeout=60)[0] == "still here"
        kept = next(row for row in cli.rows("channels") if row["port"] == "pipe")
        assert (kept["id"], kept["record"]) == (pipe["id"], pipe["record"])
        system.write_text(PAIR)
        cli.ok("up", str(system))
        assert machines(cli) == before
        for pid in before:
            os.kill(pid, 0)
    finally:
        cli.down()
