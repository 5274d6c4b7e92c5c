"""The observer: a process of its own, neither the node's nor the test's, that watches one attack.

It reads a `Scene` and then orders from its standard input, a line each, and answers each with a
line of JSON:

    settle  take down what the attacker's QEMU is and holds now; answers `Ready`
    forget  expect nothing of that QEMU any more, as it is going to be ended
    look    look now
    revoke  cut all that the attacker has, and see that it is gone
    recover kill the service, and compare what comes back (law 7)
    change  load a policy that refuses the attacker everything, and the old one again (law 3)
    residue search the attacker's memory, end it, and search what is left of it (law 6)
    inherit start a domain with another label, and search its memory (law 6)
    report  look; answers the `Verdict` of what was found since the last one
    end     look at what takes longer, too; answers a `Verdict` and ends

Between them it looks by itself, again and again.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from tests.hostile.observer import change, laws, processes, recovery, residue
from tests.hostile.observer.baits import Baits, Places
from tests.hostile.observer.neighbours import NoAnswer, Node, Scene
from tests.hostile.observer.outcome import Finding, Seen, Unseen, Verdict
from tests.support.cli import peer

PAUSE_S = 1.0
"""Between two looks, in seconds; a look takes a second or so itself."""


class Ready(msgspec.Struct, frozen=True):
    """The observer watches: `qemu` is the attacker's, 0 if it does not run."""

    qemu: int
    baits: Places


class Observer:
    """Watches the host, the node, the neighbours and the attacker's QEMU."""

    def __init__(self, scene: Scene, baits: Baits) -> None:
        self._scene = scene
        self._baits = baits
        self._node = Node(scene)
        control = Path(scene.home) / "run/control.sock"
        self._supervisor = _parent(peer(control))
        self._core = self._serving()
        self._qemu = self._uid = 0
        self._likeness: processes.Likeness | None = None
        self._strange: set[Finding] = set()
        self._findings: dict[Finding, None] = {}
        self._blind: dict[str, None] = {}
        self._looks = 0

    def settle(self) -> Ready:
        """Take down what the attacker's QEMU is now."""
        self._qemu = processes.qemu_of(self._supervisor, self._scene.attacker)
        if self._qemu:
            self._likeness = processes.likeness(self._qemu)
            self._uid = int(self._likeness.uids.split()[0])
            # An earlier run that was killed may have left files of this uid.
            self._strange = set(processes.strangers(self._uid, self._its_own()))
            if self._likeness.given is None:
                self._blind["descriptors and namespaces of another uid's process"] = None
        return self.ready()

    def ready(self) -> Ready:
        """Say what is watched."""
        return Ready(self._qemu, self._baits.places)

    def look(self) -> None:
        """Look at everything once."""
        self._note(self._baits.look())
        self._note(processes.lost(self._core))
        self._note(self._node.served())
        self._note(self._jail())
        self._looks += 1

    def revoke(self) -> None:
        """Cut all that the attacker has; what it holds is not known any more."""
        self._note(self._node.revoke(self._scene.attacker))

    def recover(self) -> None:
        """Kill the service: law 7."""
        self._note(self._jail())
        kinds = processes.kinds(self._core)
        self._note(recovery.comes_back(self._node, self._scene))
        # Manager and writer come anew with their service; neighbours were compared by name.
        end = time.monotonic() + self._scene.bound_s
        while processes.kinds(core := self._serving()) != kinds and time.monotonic() < end:
            time.sleep(0.1)
        if processes.kinds(core) != kinds:
            self._note([Finding("hindered", "not all that serves others came back")])
        self._core = core

    def change(self) -> None:
        """Load a policy that refuses the attacker everything: law 3."""
        self._note(self._jail())
        self._note(change.changed(self._node, self._scene, self._supervisor))
        self._note(self._jail())

    def residue(self) -> None:
        """End the attacker, after a last look into its memory, and search for its mark: law 6."""
        self._note(self._its_memory())
        if self._qemu:
            self._note(each for each in self._put_to_end() if each.kind != "ended")
        self._note(residue.left(self._node, self._scene, self._supervisor))

    def inherit(self) -> None:
        """Search what starts afterwards: law 6."""
        self._note(residue.inherited(self._node, self._scene, self._supervisor))

    def forget(self) -> None:
        """Expect nothing of the attacker's QEMU."""
        self._qemu = 0

    def report(self) -> Verdict:
        """Look, and say what was found since the last report."""
        self.look()
        found, self._findings = tuple(self._findings), {}
        looks, self._looks = self._looks, 0
        blind, self._blind = tuple(self._blind), {}
        return Verdict(found, looks, blind)

    def verdict(self) -> Verdict:
        """Look for the last time, at what takes longer too."""
        self._note(self._node.untouched())
        self._note(self._memories())
        self._note(laws.broken(self._node, self._scene, self._supervisor))
        return self.report()

    def _note(self, seen: Iterable[Finding | Unseen]) -> None:
        for each in seen:
            if isinstance(each, Unseen):
                self._blind[each.what] = None
            else:
                self._findings[each] = None

    def _serving(self) -> dict[int, str]:
        return processes.core(self._supervisor, (*self._scene.neighbours, self._scene.mate))

    def _put_to_end(self) -> Iterator[Finding]:
        """End the attacker, and say what of it is left."""
        try:
            self._node.ask("kill", self._scene.attacker)
        except NoAnswer as none:
            yield Finding("hindered", str(none))
        end = time.monotonic() + self._scene.bound_s
        while processes.command_line(self._qemu) and time.monotonic() < end:
            time.sleep(0.02)
        yield from self._ended()

    def _its_memory(self) -> Seen:
        """Say whether a neighbour's secret is in the attacker's memory, where its mark must be."""
        secret, mark = self._scene.secret.encode(), self._scene.mark.encode()
        found = processes.held_texts(self._qemu, [secret, mark]) if self._qemu else frozenset()
        if found is None:
            yield Unseen("memory of another uid's process")
        elif secret in found:
            yield Finding("reached", "a neighbour's secret is in the attacker's memory")
        elif self._qemu and mark not in found:
            yield Unseen("the mark in the attacker's memory before its end")

    def _jail(self) -> Iterator[Finding]:
        """Look at the attacker's QEMU, or at what became of it."""
        if self._qemu == 0 or self._likeness is None:
            return
        try:
            now = processes.likeness(self._qemu)
        except OSError:
            if processes.command_line(self._qemu):
                raise
            yield from self._ended()
            return
        children = processes.below(self._qemu)[1:]
        yield from processes.changes(self._likeness, now, len(children))
        yield from self._strangers(self._its_own())
        if processes.resident(self._qemu) > self._scene.most:
            most = self._scene.most >> 20
            yield Finding("hindered", f"its machine takes more than {most} MiB of the host")

    def _its_own(self) -> list[int]:
        name = f" -name {self._scene.attacker} "
        return [p for p in processes.below(self._supervisor) if name in processes.command_line(p)]

    def _ended(self) -> Iterator[Finding]:
        """The attacker's QEMU is gone: it must be reported, recorded and cleaned up."""
        self._qemu = 0
        left = ["nobody has looked"]
        end = time.monotonic() + self._scene.bound_s
        while left and time.monotonic() < end:
            try:
                left, reason = self._node.left_of(self._scene.attacker)
                left += [each.what for each in self._strangers([])]
            except NoAnswer as none:
                left = [str(none)]
        for what in left:
            yield Finding("hindered", f"the attacker's QEMU has ended, and {what}")
        if not left:
            yield Finding("ended", reason)

    def _strangers(self, jail: list[int]) -> list[Finding]:
        """Return what has the attacker's uid outside of its jail, and had not before."""
        return [f for f in processes.strangers(self._uid, jail) if f not in self._strange]

    def _memories(self) -> Iterator[Finding]:
        """Say whose memory has what only another domain may have."""
        scene = self._scene
        mark, secret = scene.mark.encode(), scene.secret.encode()
        for name in (scene.attacker, *scene.neighbours):
            pid = processes.qemu_of(self._supervisor, name)
            sought = secret if name == scene.attacker else mark
            found = processes.held_texts(pid, [sought]) if pid else frozenset()
            if found is None:
                self._blind["memory of another uid's process"] = None
            elif found:
                what = "a neighbour's secret" if sought == secret else "the attacker's mark"
                yield Finding("reached", f"{what} is in the memory of {name}'s QEMU")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _say(message: Ready | Verdict) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _orders(observer: Observer) -> Iterator[str]:
    """Yield each order; look while there is none."""
    lines = os.fdopen(os.dup(0), "rb", buffering=0)
    while True:
        if select.select([lines], [], [], PAUSE_S)[0]:
            order = lines.readline().decode().strip()
            if not order:
                return
            yield order
        else:
            observer.look()


def main() -> None:
    """Watch until told to end, or until nobody is there to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    scene = msgspec.json.decode(_first_line(), type=Scene)
    baits = Baits(scene.bait)
    try:
        observer = Observer(scene, baits)
        for order in _orders(observer):
            _say(_obey(observer, order))
            if order == "end":
                return
    finally:
        baits.close()


def _obey(observer: Observer, order: str) -> Ready | Verdict:
    match order:
        case "forget":
            observer.forget()
        case "look":
            observer.look()
        case "revoke":
            observer.revoke()
        case "recover":
            observer.recover()
        case "change":
            observer.change()
        case "residue":
            observer.residue()
        case "inherit":
            observer.inherit()
        case "report":
            return observer.report()
        case "end":
            return observer.verdict()
    return observer.settle() if order == "settle" else observer.ready()


def _first_line() -> bytes:
    """Read a line and nothing behind it."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return bytes(line)


if __name__ == "__main__":
    main()
