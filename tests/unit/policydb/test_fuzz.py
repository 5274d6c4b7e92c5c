"""A damaged or hostile policy file is one error with an offset, and costs little."""

from __future__ import annotations

import contextlib
import os
import random
import struct
from pathlib import Path

import pytest

from skerry.errors import Denied, PolicyError
from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.constraint import infix
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.labelling import Labelling
from skerry.xsm.flask.model import FlaskPolicy
from skerry.xsm.flask.server import SecurityServer

DATA = Path(__file__).parent / "data"
FILES = ("small.24", "small.30", "small.33", "xen.24", "xen.30")
LONG = bool(os.environ.get("SKERRY_LONG"))


def use(policy: FlaskPolicy) -> None:
    """Ask everything that a policy can be asked; nothing but a denial may come of it."""
    server, contexts = SecurityServer(policy), Contexts(policy)
    labelling = Labelling(server, contexts)
    shown = [entry.contexts[0] for entry in policy.object_contexts]
    for context in shown:
        contexts.text(context)
    valid = [context for context in shown if not contexts.problem(context)]
    for tclass in policy.classes.values():
        for constraint in tclass.constraints:
            infix(constraint, policy)
        for one, two in zip(valid, reversed(valid), strict=True):
            server.vectors(one, two, tclass.value)
            with contextlib.suppress(Denied):
                labelling.new_context(one, two, tclass, "transition")


def attempt(untrusted: bytes) -> bool:
    """Read and use a file; tell whether it was read. Anything but `PolicyError` fails the test."""
    try:
        policy = read_policydb(untrusted, "fuzzed")
    except PolicyError as error:
        assert len(error.problems) == 1
        assert "at offset " in str(error)
        return False
    use(policy)
    return True


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_is_read_and_a_truncated_or_longer_one_is_refused(name: str) -> None:
    """Every prefix of a policy is damaged, and so is a policy with a byte more."""
    whole = (DATA / name).read_bytes()
    assert attempt(whole)
    assert not any(attempt(whole[:length]) for length in range(len(whole)))
    assert not attempt(whole + b"\0")


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_are_refused_or_give_a_policy_that_can_be_used(name: str) -> None:
    """One to four flipped bits anywhere never lead to anything but `PolicyError`."""
    whole = (DATA / name).read_bytes()
    rand = random.Random(name)
    for _ in range(20_000 if LONG else 400):
        damaged = bytearray(whole)
        for _ in range(rand.choice((1, 1, 2, 4))):
            damaged[rand.randrange(len(damaged))] ^= 1 << rand.randrange(8)
        attempt(bytes(damaged))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 64])
def test_any_number_of_the_file_may_be_hostile(name: str, number: int) -> None:
    """A huge count is refused before anything is made of it."""
    whole = (DATA / name).read_bytes()
    step = 1 if LONG else 12
    for offset in range(0, len(whole) - 3, step):
        damaged = bytearray(whole)
        struct.pack_into("<I", damaged, offset, number)
        attempt(bytes(damaged))
