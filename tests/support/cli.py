"""Runs the real command `skerry` against a node of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.machines import cache

SKERRY = Path(sys.executable).with_name("skerry")
IN_SHELL = shlex.quote(str(SKERRY))
"""`skerry` as a word of a shell's line: a checkout's path may hold a space."""

TIMEOUT_S = 180.0


_WATCHER = """
import os, shutil, subprocess, sys
sys.stdin.read()
subprocess.run([sys.argv[1], "down", "--timeout", "1"])
shutil.rmtree(os.environ["SKERRY_HOME"], ignore_errors=True)
"""


class Cli:
    """The command line with `SKERRY_HOME` in a directory that the domains' uids can traverse.

    Jail roots and images are shared by all of a user's test runs, so that they are made once.
    """

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="skerry-cli-", dir="/var/tmp"))
        self.home.chmod(0o755)
        self._seen: dict[int, str] = {}
        share = cache() / "share"
        share.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.env = {**os.environ, "SKERRY_HOME": str(self.home), "SKERRY_SHARE": str(share)}
        # A detached node would outlive a test run that is killed: this ends it when we are gone.
        self._watcher = subprocess.Popen(
            [sys.executable, "-c", _WATCHER, SKERRY],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def run(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its exit code."""
        done = subprocess.run(
            [SKERRY, *words],
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        text = (done.stdout.decode(), done.stderr.decode())
        return subprocess.CompletedProcess(done.args, done.returncode, *text)

    def ok(self, *words: str, stdin: bytes = b"") -> str:
        """Run a command that must succeed, and return its output."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def denied(self, *words: str) -> str:
        """Run a command that must be denied by policy, and return the explanation."""
        done = self.run(*words)
        assert done.returncode == 3, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stderr

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """Run a command with `--json` and return its objects."""
        return [json.loads(line) for line in self.ok(*words, "--json").splitlines()]

    def popen(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command and return it running."""
        return subprocess.Popen(
            [SKERRY, *words],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **more,
        )

    def down(self) -> None:
        """End the node if it runs, and remove its directory."""
        self.run("down", "--timeout", "1")
        self._watcher.communicate()

    def processes(self) -> dict[int, str]:
        """Return every process of this node, its jails included, by its command line.

        The node's own can't be read by an ordinary user: it is who answers at the socket, and
        what was found once is looked for again.
        """
        parents: dict[int, int] = {}
        service = peer(self.home / "run/control.sock")
        found = {service, *left_of(self._seen)} - {0}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in (os.getpid(), self._watcher.pid):
                continue
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(stat[1])
                if stat[0] != "Z" and str(self.home).encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
        above = parents.get(service, 0)  # an orphan's is the first process of the host
        if "skerry.supervisor.main" in command_line(above):
            found.add(above)
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        self._seen = {pid: words for pid in found if (words := command_line(pid))}
        return dict(self._seen)


def sh(cli: Cli, domain: str, script: str) -> str:
    """Run a script in a guest, which must succeed, and return what it said."""
    return cli.ok("exec", domain, "--", "sh", "-c", script).strip()


def peer(path: Path) -> int:
    """Return the process that listens at a socket, 0 if none does."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return 0
        pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[
            0
        ]
        return pid


def command_line(pid: int) -> str:
    """Return the words of a process, nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def left_of(before: Mapping[int, str]) -> dict[int, str]:
    """Return those of some processes that still run the same command."""
    return {pid: words for pid, words in before.items() if command_line(pid) == words}
