"""Guests that attack: real QEMUs under a real node in their whole jail, watched from outside.

In the ordinary tests a few attacks of a few seconds each share one attacker and one last look; the
long form (`./run hostile`) has all of them on every board, each looked at in full.
"""

from __future__ import annotations

import pytest

from tests.hostile import table
from tests.hostile.attacks import ATTACKS, LONG, SECONDS, Attack
from tests.hostile.fields import Fields
from tests.hostile.observer.outcome import WORSE, Verdict

ALL = [
    pytest.param(board, attack, id=f"{board}-{attack.name}")
    for board in ("pc", "q35", "microvm")
    for attack in ATTACKS
    if board in attack.boards and (LONG or (attack.short and board == "pc"))
]


def harmless(verdict: Verdict) -> bool:
    """Say whether nobody but the attacker had any harm."""
    return WORSE.index(verdict.outcome) <= WORSE.index("abnormal termination")


@pytest.mark.parametrize(("board", "attack"), ALL)
def test_a_guest_that_attacks_harms_nobody_but_itself(
    fields: Fields, board: str, attack: Attack
) -> None:
    """Nothing outside of its jail is reached, no law broken, no neighbour or core hindered."""
    field = fields.on(board)
    watch = fields.watch()
    done = field.attack(attack, watch, SECONDS)
    field.aftermath(watch)
    verdict = watch.report("report")
    if LONG:
        verdict = fields.end(verdict)
    table.rows.append(field.row(attack, SECONDS, done.operations, verdict))
    assert done.operations > 0, "the control: it did attack"
    assert done.revoked == attack.revoke, "the control: all was cut while it attacked"
    assert verdict.looks > 0
    assert harmless(verdict), verdict.findings


def test_after_all_attacks_every_law_holds(fields: Fields) -> None:
    """Canaries, memories, consoles, trail and policy are looked at once more, thoroughly."""
    fields.there()
    verdict = fields.end()
    assert harmless(verdict), verdict.findings
