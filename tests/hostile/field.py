"""Where guests attack: a real node with an attacker, its mate and two neighbours, and who watches.

The attacker has one channel of each kind with its mate and a use of each kind of resource; with the
neighbours, which have a stream of their own, the policy lets it share nothing. The attacks are
started over its serial console, which is there when its agent is not.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from skerry.node.jails import MEMORY_OVERHEAD
from tests.hostile import attacks
from tests.hostile.attacker import Console, Talk
from tests.hostile.attacks import LONG, Attack
from tests.hostile.observer.__main__ import Ready
from tests.hostile.observer.neighbours import BOUND_S, Node, Scene
from tests.hostile.observer.outcome import Verdict
from tests.hostile.table import Row
from tests.support.cli import Cli

STALL_S = 20.0
"""An attack that says nothing for so long has silenced its own guest, which is started anew."""

LIVES = 3
"""How many guests an attack gets that has not done its work when its time is over."""

LIFE_S = 2.0
"""The shortest time that a guest is given to attack in, in seconds."""

MEMORY = 192 << 20
"""Bytes of the attacker's memory."""

ROOT = Path(__file__).parents[2]

POLICY = """\
[policy]
name = "tests.hostile"
version = "1.0"
bootstrap = "system"

[simple-type-enforcement]
types = ["wild", "quiet", "still", "alone"]

[labels.system]
ste = ["wild", "quiet", "still", "alone"]

[labels.attacker]
ste = ["wild"]

[labels.heir]
ste = ["still"]

[labels.mate]
ste = ["wild"]

[labels.left]
ste = ["quiet"]

[labels.right]
ste = ["quiet"]

[resources.goods]
ste = "wild"
"""

REFUSING = POLICY.replace('[labels.attacker]\nste = ["wild"]', '[labels.attacker]\nste = ["alone"]')
"""A policy that leaves the attacker nothing."""

SYSTEM = """\
name = "hostile"
policy = "policy.toml"

[jail]
accept-missing = ["cgroup", "swap"]

[domains.left]
label = "left"
memory = "128M"

[domains.right]
label = "right"
memory = "128M"

[domains.mate]
label = "mate"
memory = "128M"

[domains.heir]
label = "heir"
memory = "128M"
autostart = false

[domains.attacker]
label = "attacker"
image = "hostile"
memory = "192M"
board = "{board}"
uses = [{uses}]

[resources.chip]
kind = "tpm"
label = "goods"

[[channels]]
kind = "stream"
from = "left"
to = "right"
name = "talk"

[[channels]]
kind = "stream"
from = "attacker"
to = "mate"
name = "orders"

[[channels]]
kind = "stream"
from = "attacker"
to = "mate"
name = "up"
one-way = true
overflow = "drop"

[[channels]]
kind = "stream"
from = "mate"
to = "attacker"
name = "down"
one-way = true
"""

SLOTS = """
[resources.data]
kind = "disk"
label = "goods"
file = "data.img"
size = "16M"

[resources.web]
kind = "uplink"
label = "goods"
allow = ["10.255.255.1:{bait}"]

[[channels]]
kind = "link"
from = "attacker"
to = "mate"
name = "wire"

[[channels]]
kind = "memory"
from = "attacker"
to = "mate"
name = "shared"
size = "64K"

[[channels]]
kind = "memory"
from = "mate"
to = "attacker"
name = "still"
size = "64K"
one-way = true
"""


class Watch:
    """The observer, as a process of its own. Close it when done."""

    def __init__(self, scene: Scene) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.observer"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._write(msgspec.json.encode(scene))
        self.ready = self.order("settle")

    def order(self, what: str) -> Ready:
        """Give an order, and return what it is answered."""
        self._write(what.encode())
        return msgspec.json.decode(self._line(), type=Ready)

    def report(self, what: str = "report") -> Verdict:
        """Have it report; `end` looks at everything and ends it."""
        self._write(what.encode())
        return msgspec.json.decode(self._line(), type=Verdict)

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the observer has ended"
        return line


class Attacked(msgspec.Struct, frozen=True):
    """What an attack did: how many operations; whether all was cut while its guest attacked."""

    operations: int
    revoked: bool


class Field:
    """A running system whose attacker is on this board. Close it when done."""

    def __init__(self, board: str) -> None:
        self.board = board
        self._tried = False
        self.cli = Cli()
        # Reserved, so that it is each observer's: bound here, and listening there.
        self._bait = socket.socket()
        self._bait.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._bait.bind(("127.0.0.1", 0))
        self.bait: int = self._bait.getsockname()[1]
        self.secret, self.mark, self.backward = (secrets.token_hex(24) for _ in range(3))
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        home = self.cli.home
        slots = self.board == "pc"
        self.cli.ok("image", "build", str(attacks.write_recipe(home)))
        (home / "policy.toml").write_text(POLICY)
        (home / "refusing.toml").write_text(REFUSING)
        uses = '"chip", "data", "web"' if slots else '"chip"'
        text = SYSTEM.format(board=self.board, uses=uses)
        text += SLOTS.format(bait=self.bait) if slots else ""
        (home / "system.toml").write_text(text)
        self.cli.ok("up", str(home / "system.toml"), "--detach")
        self.node = Node(self.scene())
        self.node.settle()

    def scene(self, bound_s: float = BOUND_S) -> Scene:
        """Return what an observer is told."""
        return Scene(
            home=str(self.cli.home),
            share=self.cli.env["SKERRY_SHARE"],
            attacker="attacker",
            neighbours=("left", "right"),
            mate="mate",
            secret=self.secret,
            mark=self.mark,
            backward=self.backward,
            refused=("mate", "left"),
            expected=(("left", "right", "talk"),),
            bound_s=bound_s,
            most=MEMORY + MEMORY_OVERHEAD,
            bait=self.bait,
            policy=str(self.cli.home / "policy.toml"),
            refusing=str(self.cli.home / "refusing.toml"),
            heir="heir",
            disk="data" if self.board == "pc" else "",
        )

    @contextlib.contextmanager
    def watched(self, bound_s: float = BOUND_S) -> Iterator[Watch]:
        """Have an observer watch for the length of the block."""
        watch = Watch(self.scene(bound_s))
        try:
            yield watch
        finally:
            watch.close()

    def close(self) -> None:
        """End everything."""
        self.cli.down()
        self._bait.close()

    def state(self) -> str:
        """Return the state of the attacker."""
        return next(str(row["state"]) for row in self.cli.rows("ps") if row["name"] == "attacker")

    def renew(self, watch: Watch) -> None:
        """Give the attacker a fresh guest: end it if it runs, and start it."""
        watch.order("forget")
        if self.state() != "ended":
            self.cli.ok("kill", "attacker")
        end = time.monotonic() + STALL_S
        while self.state() != "ended":
            assert time.monotonic() < end, "a killed domain does not end"
            time.sleep(0.1)
        self.cli.ok("start", "attacker")
        self.cli.ok("exec", "attacker", "--", "true")
        watch.order("settle")

    def aftermath(self, watch: Watch, thorough: bool = False) -> None:
        """Have the observer try the laws that only show when something ends; the attacker does.

        The service is killed, and a domain started after the attacker, where it is `thorough`, for
        every attack in the long form, and for the first on a board: that takes some seconds.
        """
        thorough, self._tried = thorough or LONG or not self._tried, True
        if self.state() != "running":
            watch.order("residue")
            self.renew(watch)
            hear = ("sh", "-c", "cat >/run/mark")
            self.cli.ok("exec", "-i", "attacker", "--", *hear, stdin=self.mark.encode())
        for order in ("recover", "change", "residue", "inherit"):
            if thorough or order in ("change", "residue"):
                watch.order(order)

    def attack(self, attack: Attack, watch: Watch, seconds: float) -> Attacked:
        """Attack until the time is over, from as many guests as it takes."""
        if attack.fresh or self.state() != "running":
            self.renew(watch)
        end = time.monotonic() + seconds
        operations, to_revoke, lives = 0, attack.revoke, 0
        while True:
            left = max(end - time.monotonic(), LIFE_S)
            done = self._life(attack, watch, left, to_revoke)
            operations, lives = operations + done.operations, lives + 1
            to_revoke = to_revoke and not done.revoked
            is_done = operations and not to_revoke
            if time.monotonic() >= end and (is_done or lives >= LIVES):
                return Attacked(operations, attack.revoke and not to_revoke)
            watch.order("look")
            self.renew(watch)

    def _life(self, attack: Attack, watch: Watch, seconds: float, to_revoke: bool) -> Attacked:
        """Attack from one guest, until it has no more time or says no more.

        With `to_revoke`, all that it has is cut half-way, if it lives so long.
        """
        console = Console(self.cli)
        talk = Talk(self.cli) if attack.talk else None
        try:
            seed = secrets.randbelow(1 << 31)
            words = f"{attack.name} {seconds:.1f} {seed} {self.mark} {self.backward} {self.bait}"
            console.type(f"attack {words}")
            begun = now = spoke = time.monotonic()
            heard, ended, revoked = 0, False, False
            while not (console.over or ended) and now < min(begun + seconds, spoke) + STALL_S:
                _, ended, total = console.said(attack.name)
                now = time.monotonic()
                if total != heard:
                    heard, spoke = total, now
                if to_revoke and not revoked and now > begun + seconds / 2:
                    revoked = True
                    watch.order("revoke")
                time.sleep(0.05)
            return Attacked(console.said(attack.name)[0], revoked)
        finally:
            console.close()
            if talk is not None:
                talk.close()

    def row(self, attack: Attack, seconds: float, operations: int, verdict: Verdict) -> Row:
        """Return a line of the table."""
        seen = [finding.what for finding in verdict.findings]
        words = "; ".join(dict.fromkeys([*seen, *(f"not seen: {what}" for what in verdict.blind)]))
        return Row(attack.name, self.board, seconds, operations, verdict.outcome, words or "-")
