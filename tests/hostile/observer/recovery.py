"""Law 7, after an attack: the service is killed, and what comes back is compared.

The rule: what was acknowledged stands, what was cut stays cut, and what is doubtful of the attacker
is cut on record. Nobody else's domain or channel is doubtful. The journal is verified by what is
made of it, the trail by its chain and by being the one from before and more.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.hostile.observer.neighbours import NoAnswer, Node, Scene
from tests.hostile.observer.outcome import Finding
from tests.support.cli import peer

RECORDS = 20
"""How many records at the end of the trail are searched for what the service found."""


class Stood(msgspec.Struct, frozen=True):
    """What stood: each channel by its number, who runs, and the trail."""

    channels: Mapping[int, Mapping[str, Any]]
    running: frozenset[str]
    trail: bytes


def comes_back(node: Node, scene: Scene) -> Iterator[Finding]:
    """Kill the service right behind two answers, and say what is not as the law has it."""
    one, other = scene.neighbours
    try:
        stays, goes = (_connect(node, one, other, name) for name in ("stays", "goes"))
        node.ask("cut", goes)
        before = stood(node, scene)
        _kill(node, scene)
        after = stood(node, scene)
        last = before.trail.count(b"\n")
        tail = node.rows("audit", "tail", "-n", str(RECORDS))
        said = [each for each in tail if each["n"] > last]
        yield from unlike(before, after, found(said, scene.attacker), scene.attacker)
        if int(stays) not in before.channels or int(goes) in before.channels:
            yield Finding("hindered", "a channel that was bound or cut is not as it was answered")
        done = node.ask("audit", "verify")
        if done.returncode:
            yield Finding("reached", f"`audit verify` came to {done.returncode}: {_words(done)}")
        node.ask("cut", stays)
        yield from node.served()
    except NoAnswer as none:
        yield Finding("hindered", str(none))


def stood(node: Node, scene: Scene) -> Stood:
    """Return what stands now. Raises `NoAnswer`."""
    return Stood(
        {row["id"]: row for row in node.rows("channels") if row["state"] == "live"},
        frozenset(r["name"] for r in node.rows("ps") if r.get("name") and r["state"] == "running"),
        (Path(scene.home) / "state/audit.log").read_bytes(),
    )


def unlike(
    before: Stood, after: Stood, recovered: Mapping[str, Any] | None, attacker: str
) -> Iterator[Finding]:
    """Say what a service that came back has lost or made up; `recovered` is its own record."""
    if recovered is None:
        yield Finding("reached", "the trail does not say what the service found")
        recovered = {"cut": {}, "ended": {}}
    if not after.trail.startswith(before.trail):
        yield Finding("reached", "the trail lost records that it had when the service was killed")
    for number, row in before.channels.items():
        ends = row["source"], row["sink"]
        is_doubtful = str(number) in recovered["cut"] or attacker in recovered["ended"]
        if number not in after.channels and not (attacker in ends and is_doubtful):
            yield Finding("reached", f"the channel {row['port']} of {ends} did not come back")
    for number in after.channels.keys() - before.channels.keys():
        yield Finding("reached", f"the channel {after.channels[number]['port']} was not there")
    for name in before.running - after.running:
        if name != attacker or name not in recovered["ended"]:
            yield Finding("reached", f"{name} did not come back")
    for name in after.running - before.running:
        yield Finding("reached", f"{name} runs, and did not")


def _kill(node: Node, scene: Scene) -> None:
    """Kill the service, and wait for the next one. Raises `NoAnswer`."""
    control = Path(scene.home) / "run/control.sock"
    service = peer(control)
    os.kill(service, signal.SIGKILL)
    end = time.monotonic() + scene.bound_s
    while peer(control) in (0, service):
        if time.monotonic() > end:
            raise NoAnswer(f"no service came back in {scene.bound_s:g} s")
        time.sleep(0.05)
    node.rows("ps")


def found(records: Sequence[Mapping[str, Any]], attacker: str) -> dict[str, Any] | None:
    """Return what the last service said that it found, None if it did not.

    An attacker whose QEMU ended by itself just then counts as ended, as the trail says it.
    """
    said = [each["fields"] for each in records if each["event"] == "recovered-node"]
    if not said:
        return None
    ended = [each["fields"].get("domain") for each in records if each["event"] == "ended"]
    by_itself = {attacker: "ended"} if attacker in ended else {}
    return {**said[-1], "ended": {**said[-1]["ended"], **by_itself}}


def _connect(node: Node, one: str, other: str, name: str) -> str:
    """Bind a channel and return its number. Raises `NoAnswer`."""
    done = node.ask("connect", one, other, "--name", name)
    if done.returncode:
        raise NoAnswer(f"{one} gets no channel with {other}: {_words(done)}")
    return done.stdout.decode().strip()


def _words(done: Any) -> str:
    return str((done.stdout + done.stderr).decode(errors="replace").strip()[:200])
