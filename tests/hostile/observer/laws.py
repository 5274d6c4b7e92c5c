"""The laws, after an attack: what must hold of a node whatever its guests have done.

The checks of the trail are those that a node must pass after it was killed (`tests.support.trail`);
what the node says of itself is compared with the trail and with what the host sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.hostile.observer import processes
from tests.hostile.observer.neighbours import NoAnswer, Node, Scene, missing
from tests.hostile.observer.outcome import Finding
from tests.support.trail import Broken, all_allowed, proven


def broken(node: Node, scene: Scene, supervisor: int) -> Iterator[Finding]:
    """Say which law does not hold. What can't be asked is a hindrance."""
    try:
        yield from _mediation(node, scene)
        yield from _explanation(node, scene)
    except NoAnswer as none:
        yield Finding("hindered", str(none))
    yield from _direction(scene, supervisor)


def _mediation(node: Node, scene: Scene) -> Iterator[Finding]:
    """Laws 2 and 4: each live channel has an allow in a trail whose chain holds."""
    rows = node.rows("channels")
    yield from missing(rows, scene)
    lines = (Path(scene.home) / "state/audit.log").read_bytes().splitlines(keepends=True)
    try:
        all_allowed({row["id"]: row["record"] for row in rows}, proven(lines))
    except Broken as error:
        yield Finding("reached", str(error))
    for row in rows:
        ends = {row["source"], row["sink"]}
        if scene.attacker in ends and ends & set(scene.neighbours):
            yield Finding("reached", f"the attacker has the channel {row['port']} with {ends}")


def _explanation(node: Node, scene: Scene) -> Iterator[Finding]:
    """Law 8: what the policy refuses is refused as ever, with its code."""
    done = node.ask("connect", *scene.refused)
    words = done.stderr.decode(errors="replace").strip()
    if done.returncode == 0:
        yield Finding("reached", f"{scene.refused[0]} got a channel with {scene.refused[1]}")
    elif done.returncode != 3 or "[STE-NO-SHARED-TYPE]" not in words:
        yield Finding("hindered", f"a refusal came to {done.returncode}: {words[:200]}")


def _direction(scene: Scene, supervisor: int) -> Iterator[Finding]:
    """Law 5: what the sink of a one-way channel writes is nowhere in the source's machine."""
    mate = processes.qemu_of(supervisor, scene.mate)
    if scene.backward.encode() in (processes.held_texts(mate, [scene.backward.encode()]) or ()):
        yield Finding("reached", f"what went backwards over a one-way channel is in {scene.mate}")
