"""Damaged random policies: rules and names of every kind, so that damage can hit every kind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.oracle.generate import compiled
from tests.support.policies import Language, Target
from tests.unit.flask.test_against_libsepol import KINDS
from tests.unit.policydb.test_fuzz import LONG, attempt

POLICIES, DAMAGES = (60, 500) if LONG else (8, 100)


def damage(whole: bytes, rand: random.Random) -> bytes:
    """Return a policy with flipped bits, another number, or a part doubled, moved or lost."""
    data = bytearray(whole)
    for _ in range(rand.choice((1, 1, 1, 3))):
        at = rand.randrange(len(data) - 8)
        kind = rand.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rand.randrange(8)
        elif kind == 1:
            number = rand.choice((0, 1, 2, 31, 32, 33, 63, 64, 65, 0xFFFF, 0x10000, 0x7FFFFFFF))
            data[at & ~3 : (at & ~3) + 4] = number.to_bytes(4, "little")
        elif kind == 2:
            size = rand.choice((1, 4, 8, 12, 64))
            data[at:at] = data[at : at + size]
        else:
            del data[at : at + rand.choice((1, 4, 8, 12, 64))]
    return bytes(data)


@pytest.mark.parametrize(("target", "language"), KINDS)
def test_damage_is_refused_or_gives_a_policy_that_can_be_used(
    tmp_path: Path, target: Target, language: Language
) -> None:
    """Nothing but `PolicyError` comes of it; whole policies are read, some damaged ones too."""
    read = refused = 0
    for seed in range(POLICIES):
        whole = compiled(seed, target, language, tmp_path).read_bytes()
        assert attempt(whole)
        rand = random.Random(f"{seed} {target} {language}")
        for _ in range(DAMAGES):
            if attempt(damage(whole, rand)):
                read += 1
            else:
                refused += 1
    assert refused > read > 0
