"""What an analysis may take: it is asked between steps, and no step grows with what was sent."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.flow.claim import Claim, resolve
from skerry.flow.contexts import context_graph, named_contexts
from skerry.flow.graph import Graph
from tests.unit.flow.test_contexts import constrained


class Late(Exception):
    """The time is over."""


class Check:
    """Lets so many steps be made."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> None:
        """Count a step."""
        self.left -= 1
        if self.left < 0:
            raise Late


def test_what_was_meant_is_looked_for_once_and_among_a_bounded_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a thousand unknown names in a graph of 4,000 only the first is compared with any."""
    asked: list[tuple[int, int]] = []
    plain = difflib.get_close_matches

    def counting(word: str, among: Sequence[str], count: int) -> list[str]:
        asked.append((len(word), len(among)))
        return plain(word, among, count)

    monkeypatch.setattr(difflib, "get_close_matches", counting)
    graph = Graph([f"tenant-department-{n:05d}" for n in range(4_000)], [0] * 4_000)
    unknown = tuple(f"tenant-department-{n:05d}-{'x' * 300}" for n in range(1_000))
    with pytest.raises(InputError) as caught:
        resolve(Claim(unknown, ("tenant-department-00000",)), graph)
    assert len(caught.value.problems) == 1_000
    assert asked == [(128, 1_000)]
    with pytest.raises(InputError, match="did you mean tenant-department-0399"):
        Graph(graph.names, graph.rows).find("tenant-department-0399")


def test_the_time_is_looked_at_for_each_name_of_a_claim() -> None:
    """Also for names that are none. The control has time enough."""
    graph = Graph([f"n{n}" for n in range(50)], [0] * 50)
    claim = Claim(tuple(graph.names[1:]), ("n0",))
    assert resolve(claim, graph, Check(50)).sinks == 1
    with pytest.raises(Late):
        resolve(claim, graph, Check(49))
    with pytest.raises(Late):
        resolve(Claim(("x",) * 100, ("n0",)), graph, Check(10))


def test_the_time_is_looked_at_while_contexts_are_named_and_asked(tmp_path: Path) -> None:
    """For each pattern, each context that it names, and each context that is asked."""
    module = constrained(2, tmp_path)
    count = len(named_contexts(module, ["*:*:*"]))
    enough = Check(10_000)
    context_graph(module, ["*:*:*"], check=enough)
    used = 10_000 - enough.left
    assert used > 2 * count
    for steps in (0, count // 2, count + 1, used - 1):
        with pytest.raises(Late):
            context_graph(module, ["*:*:*"], check=Check(steps))
    with pytest.raises(Late):
        named_contexts(module, ["nobody:*:*"] * 10, Check(5))
