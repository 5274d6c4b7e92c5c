"""Whether the node and a neighbour serve as ever, asked as their user would, by the command.

The rule: an answer that comes after the scene's bound is none, and neither is a list's failure.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tests.hostile.observer.outcome import Finding
from tests.support.cli import SKERRY

BOUND_S = 20.0
"""How long an answer may take, in seconds: a busy host with emulated processors is slow."""

CONSOLE_S = 1.5
"""How long a console is read for what it keeps, in seconds."""

_ECHO = 'exec 3<>/dev/virtio-ports/talk; while read -r line <&3; do echo "$line" >&3; done'
# A port is opened by one at a time, and an earlier word that came too late may still hold it.
_PING = (
    "for _ in $(seq 20); do (exec 3<>/dev/virtio-ports/talk; echo {0} >&3; "
    'while read -r line <&3; do [ "$line" = {0} ] && echo {0} && exit; done; exit 1'
    ") 2>/dev/null && exit; sleep 0.2; done"
)
CANARY = "/run/canary"
"""A neighbour's file with its secret."""


class Scene(msgspec.Struct, frozen=True):
    """What an observer is told: where the node is, who is who, and what nobody else may have.

    `expected` are the channels of the neighbours: source, sink and port of each. `refused` are two
    domains that the policy keeps apart. `bound_s`: how long an answer may take, in seconds; `most`:
    how many bytes of the host the attacker's machine may take; `bait`: the port of 127.0.0.1 that
    is held out, 0 for any. `policy` is the file of the one in force, `refusing` that of one that
    leaves the attacker nothing; `heir` is a domain with another label that does not run, `disk` a
    disk of the attacker's own, if it has one.
    """

    home: str
    share: str
    attacker: str
    neighbours: tuple[str, str]
    mate: str
    secret: str
    mark: str
    backward: str
    refused: tuple[str, str]
    expected: tuple[tuple[str, str, str], ...] = ()
    bound_s: float = BOUND_S
    most: int = 1 << 40
    bait: int = 0
    policy: str = ""
    refusing: str = ""
    heir: str = ""
    disk: str = ""


class NoAnswer(Exception):
    """No answer came in time, or that there is none."""


class Node:
    """A running node, through its command."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._env = {**os.environ, "SKERRY_HOME": scene.home, "SKERRY_SHARE": scene.share}

    def ask(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command. Raises `NoAnswer`."""
        try:
            return subprocess.run(
                [SKERRY, *words],
                env=self._env,
                input=stdin,
                capture_output=True,
                timeout=self._scene.bound_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            what = " ".join(words[:2])
            bound_s = self._scene.bound_s
            raise NoAnswer(f"`skerry {what}` had no answer in {bound_s:g} s") from None

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """Run a command that lists. Raises `NoAnswer` if it failed."""
        done = self.ask(*words, "--json")
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip()[:200]
            raise NoAnswer(f"`skerry {' '.join(words[:2])}` came to {done.returncode}: {why}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def sh(self, domain: str, script: str, stdin: bytes = b"") -> str:
        """Run a script in a guest; return what it said, nothing if it failed. Raises `NoAnswer`."""
        stdin_too = ("-i",) if stdin else ()
        done = self.ask("exec", *stdin_too, domain, "--", "sh", "-c", script, stdin=stdin)
        return done.stdout.decode(errors="replace").strip() if not done.returncode else ""

    def settle(self) -> None:
        """Give the neighbours what they have: an echo on their stream, and a secret."""
        one, other = self._scene.neighbours
        self.sh(other, f"({_ECHO}) >/dev/null 2>&1 &")
        self.sh(one, f"cat >{CANARY}", self._scene.secret.encode())

    def _consoles(self, *domains: str) -> Iterator[tuple[str, bytes]]:
        """Yield what the consoles of some domains keep."""
        running = {name: self._open_console(name) for name in domains}
        time.sleep(CONSOLE_S)
        for name, console in running.items():
            console.kill()
            yield name, console.communicate()[0]

    def _open_console(self, domain: str) -> subprocess.Popen[bytes]:
        words = [str(SKERRY), "console", "--read-only", domain]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, env=self._env, stdin=pipe, stdout=pipe, stderr=pipe)

    def revoke(self, domain: str) -> Iterator[Finding]:
        """Cut all that a domain has; say what of it can't be taken away."""
        try:
            for row in self.rows("channels"):
                if domain in (row["source"], row["sink"]):
                    self.ask("cut", str(row["id"]))
            left = [r["port"] for r in self.rows("channels") if domain in (r["source"], r["sink"])]
        except NoAnswer as none:
            yield Finding("hindered", str(none))
            return
        if left:
            yield Finding("hindered", f"what was cut is still there: {', '.join(left)}")

    def left_of(self, domain: str) -> tuple[list[str], str]:
        """Return what is left of a domain that has ended, and the reason that is given.

        Raises `NoAnswer`.
        """
        left = []
        row = next((row for row in self.rows("ps") if row.get("name") == domain), {})
        if row.get("state") != "ended" or not row.get("reason"):
            left.append(f"`ps` says that it is {row.get('state')}")
        # One way: its source is not told that the sink has ended, so that channel stays, stranded.
        rows = [row for row in self.rows("channels") if row["state"] != "stranded"]
        if any(domain in (row["source"], row["sink"]) for row in rows):
            left.append("it has channels")
        records = self.rows("audit", "tail", "-n", "40")
        if not any(r["event"] == "ended" and r["fields"].get("domain") == domain for r in records):
            left.append("the trail has no record of it")
        return left, str(row.get("reason"))

    def served(self) -> Iterator[Finding]:
        """Say what of the node's and the neighbours' services hangs or is down."""
        one, other = self._scene.neighbours
        try:
            states = {row.get("name"): row["state"] for row in self.rows("ps")}
            for name in (one, other, self._scene.mate):
                if states.get(name) != "running":
                    yield Finding("hindered", f"{name} is {states.get(name, 'not known')}")
            word = secrets.token_hex(8)
            if self.sh(one, _PING.format(word)) != word:
                yield Finding(
                    "hindered", f"the stream from {one} to {other} and back does not carry"
                )
        except NoAnswer as none:
            yield Finding("hindered", str(none))

    def untouched(self) -> Iterator[Finding]:
        """Say what of a neighbour's data or console is not as it was."""
        one, other = self._scene.neighbours
        try:
            if self.sh(one, f"cat {CANARY}") != self._scene.secret:
                yield Finding("reached", f"{one}'s {CANARY} is not what it was")
        except NoAnswer as none:
            yield Finding("hindered", str(none))
        for name, text in self._consoles(one, other):
            if self._scene.mark.encode() in text:
                yield Finding("reached", f"the attacker's words are on {name}'s console")


def missing(rows: Sequence[dict[str, Any]], scene: Scene) -> Iterator[Finding]:
    """Say which of the neighbours' channels are gone."""
    live = {(row["source"], row["sink"], row["port"]) for row in rows if row["state"] == "live"}
    for source, sink, port in scene.expected:
        if (source, sink, port) not in live:
            yield Finding("hindered", f"the channel {port} from {source} to {sink} is not live")
