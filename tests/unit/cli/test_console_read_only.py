"""The console of the real command, opened only to be read."""

from __future__ import annotations

import subprocess
import time

from tests.support.cli import SKERRY
from tests.support.simulated import small_node

ESCAPE = b"\x1d"


def test_what_is_typed_into_a_console_that_is_only_read_is_not_sent() -> None:
    """It shows the guest and ends with the key that ends it; the node would refuse a key sent."""
    with (
        small_node() as node,
        subprocess.Popen(
            [SKERRY, "console", "--read-only", "red"],
            env=node.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as console,
    ):
        assert console.stdin is not None
        assert console.stdout is not None
        assert console.stdout.read(8) == b"red runs"
        for keys in (b"typed\n", b"and more\n", ESCAPE):
            console.stdin.write(keys)
            console.stdin.flush()
            time.sleep(0.2)  # for the node to refuse it, if it was sent
        assert console.wait(20) == 0
        assert console.stderr is not None
        assert console.stderr.read().strip() == b""
