"""Walls with history and channels that last, over every order of bind, cut, stop and start."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from skerry.flow.acm import acm_graph
from skerry.flow.history import open_path
from skerry.policy.source import Source, make_policy
from skerry.xsm.acm.module import AcmModule
from tests.support.lasting import Could, Lasting
from tests.unit.flow.test_history import exchanges, random_policy

MOST = 5
"""Channels of a small case at most; with more, the states are too many."""

WALK = """\
[policy]
name = "live"
version = "1.0"
bootstrap = "w"
[simple-type-enforcement]
types = ["x", "y", "z"]
[chinese-wall]
types = ["ca", "cb"]
[[chinese-wall.conflicts]]
name = "banks"
types = ["ca", "cb"]
history = true
[labels.a]
ste = ["x"]
cw = ["ca"]
[labels.w]
ste = ["x", "y"]
[labels.r]
ste = ["y", "z"]
[labels.b]
ste = ["z"]
cw = ["cb"]
"""

CHANNELS = [Could("a", "w"), Could("w", "r"), Could("r", "b")]
ONE_WAY = [could._replace(one_way=True) for could in CHANNELS]
MEMORIES = [could._replace(kind="memory", one_way=True) for could in CHANNELS]
DISK = [
    Could("a", "w"),
    Could("w", "d", "disk"),
    Could("r", "d", "disk", one_way=True),
    Could("r", "b"),
]
TWO_DISKS = [
    Could("a", "d", "disk"),
    Could("w", "d", "disk", one_way=True),
    Could("w", "e", "disk"),
    Could("r", "e", "disk", one_way=True),
    Could("r", "b", one_way=True),
]
READERS = [
    Could("a", "d", "disk", one_way=True),
    Could("b", "d", "disk", one_way=True),
    Could("a", "w"),
    Could("b", "r"),
]


def walk() -> AcmModule:
    """Return the policy with the way a, w, r, b, of whose ends only one may be known."""
    (module,) = make_policy([Source("live.toml", WALK.encode())]).stack.modules
    assert isinstance(module, AcmModule)
    return module


def small() -> Iterator[tuple[int, AcmModule, list[Could]]]:
    """Yield small policies, each with all channels that it lets be bound."""
    for seed in range(200):
        module = AcmModule(random_policy(random.Random(seed)))
        names = module.labels()
        could = [Could(names[one], names[two]) for one, two in exchanges(module, names)]
        if 2 <= len(could) <= MOST:
            yield seed, module, could


@pytest.mark.parametrize("could", [CHANNELS, ONE_WAY, MEMORIES, DISK, TWO_DISKS])
def test_two_sides_of_a_wall_never_meet_however_long_channels_last(could: list[Could]) -> None:
    """What one learns over a later channel reaches none who has, or gets, the other side.

    The control: where only the ends counted, and only at the bind, they meet.
    """
    module = walk()
    assert not any(map(Lasting(module, could).meets, Lasting(module, could).states()))
    old = Lasting(module, could, old=True)
    assert any(map(old.meets, old.states()))


def test_who_only_reads_the_same_disk_is_joined_to_nobody() -> None:
    """Two rivals have it one after the other, and what each exchanges is its own affair."""
    cases = Lasting(walk(), READERS)
    live = {state.live for state in cases.states()}
    assert {frozenset({0, 2}), frozenset({1, 3})} <= live
    assert any({("w", "a"), ("r", "b")} <= state.knows for state in cases.states())


def test_a_cut_ends_what_joins() -> None:
    """Two that have talked before go different ways: one to each side of the wall."""
    cases = Lasting(walk(), CHANNELS)
    apart = {("w", "a"), ("r", "b"), ("r", "w"), ("w", "r")}
    assert any(apart <= state.knows for state in cases.states())


def test_what_is_proven_by_history_leaks_in_no_order_and_what_is_not_leaks_in_some() -> None:
    """Small policies, every pair of labels, every order; the old rule leaks what is proven."""
    proven = leaks = 0
    for seed, module, could in small():
        graph, names = acm_graph(module), module.labels()
        told = set[tuple[str, str]]()
        for state in (cases := Lasting(module, could)).states():
            assert not cases.meets(state), seed
            told |= state.knows
        before = set[tuple[str, str]]()
        for state in Lasting(module, could, old=True).states():
            before |= state.knows
        for one, source in enumerate(names):
            for two, sink in enumerate(names):
                if one != two:
                    path = open_path(graph, 1 << one, 1 << two)
                    assert bool(path) is ((sink, source) in told), (seed, source, sink)
                    proven += not path
                    leaks += not path and (sink, source) in before
    assert proven > 100
    assert leaks > 0


def test_what_is_proven_by_history_leaks_over_no_one_way_channel_either() -> None:
    """As above, with each channel two-way or one-way by chance: nothing proven is told."""
    chance = random.Random(7)
    for seed, module, all_ways in small():
        could = [one._replace(one_way=chance.random() < 0.5) for one in all_ways]
        graph, names = acm_graph(module), module.labels()
        for state in (cases := Lasting(module, could)).states():
            assert not cases.meets(state), seed
            for sink, source in state.knows:
                one, two = names.index(source), names.index(sink)
                assert one == two or open_path(graph, 1 << one, 1 << two), (seed, source, sink)
