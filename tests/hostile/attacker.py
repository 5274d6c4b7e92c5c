"""What is said to the attacker, and what is heard of it: its serial console, and commands in it.

What it says is its own: of the console a bounded piece is kept, and commands are not waited for.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading

from tests.support.cli import SKERRY, Cli

TALK_S = 1.5
"""How long a command in the attacker may take, in seconds; then it is interrupted."""

KEPT = 1 << 16
"""Bytes of the attacker's console that are kept to find the attack's reports in."""


class Console:
    """The attacker's serial console: what is typed, and what the attack says of itself."""

    def __init__(self, cli: Cli) -> None:
        self._process = subprocess.Popen(
            [SKERRY, "console", "attacker"],
            env=cli.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.total = 0
        self._kept = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def over(self) -> bool:
        """Whether the console has ended, as it does with its domain."""
        return self._process.poll() is not None

    def type(self, line: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"\n" + line.encode() + b"\n")
            self._process.stdin.flush()

    def said(self, attack: str) -> tuple[int, bool, int]:
        """Return operations, whether it has ended, and how much the console has said in all."""
        found = re.findall(rb"@@ %b (\d+) (run|end)" % attack.encode(), self._kept)
        count, what = found[-1] if found else (b"0", b"run")
        return int(count), what == b"end", self.total

    def close(self) -> None:
        """Leave it."""
        self._process.kill()
        self._reader.join()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while untrusted := os.read(self._process.stdout.fileno(), 1 << 16):
            self.total += len(untrusted)
            self._kept = (self._kept + untrusted)[-KEPT:]


class Talk:
    """Commands in the attacker, one after the other, whatever it answers. Close it when done."""

    def __init__(self, cli: Cli) -> None:
        self._over = threading.Event()
        self._cli = cli
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        words = [str(SKERRY), "exec", "--wait", "2", "attacker", "--", "echo", "hello"]
        pipe = subprocess.DEVNULL
        while not self._over.is_set():
            with subprocess.Popen(words, env=self._cli.env, stdout=pipe, stderr=pipe) as asked:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    asked.wait(TALK_S)
                asked.kill()
            self._over.wait(0.1)

    def close(self) -> None:
        """Give no more of them."""
        self._over.set()
        self._thread.join()
