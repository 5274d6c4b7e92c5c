"""The example `agent`, as its reader runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples/agent/demo.sh"


def test_the_demo_runs_to_its_end() -> None:
    """Each of its steps checks what it says; the last line is reached, and nothing is left."""
    done = subprocess.run([DEMO], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "demo: done; everything above ran as it should" in done.stdout
    assert "a83f-private-key.evil.example" in done.stdout
