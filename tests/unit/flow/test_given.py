"""What a notebook's user types into the library: names where sets are meant, or one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skerry.errors import InputError
from skerry.flow import (
    Channel,
    Graph,
    Options,
    all_shortest_paths,
    cut_channels,
    cut_flows,
    cut_labels,
    distance,
    parse_claim,
    policy_graph,
    prove,
    reach,
    reach_back,
    shortest_path,
    simple_paths,
)
from skerry.policy.source import load_stack

ROOT = Path(__file__).parents[3]
GRAPH = Graph.from_edges([("hi", "mid"), ("mid", "lo"), ("hi", "side"), ("side", "lo")])
HI, LO, MID = (GRAPH.find(name) for name in ("hi", "lo", "mid"))
CHANNELS = [Channel("one", "hi", "mid"), Channel("two", "mid", "lo")]

QUESTIONS: list[Callable[[Any, Any, Any], object]] = [
    lambda hi, lo, mid: reach(GRAPH, hi, mid),
    lambda hi, lo, mid: reach_back(GRAPH, lo, avoid=mid),
    lambda hi, lo, mid: distance(GRAPH, hi, lo, mid),
    lambda hi, lo, mid: shortest_path(GRAPH, hi, lo, mid),
    lambda hi, lo, mid: list(all_shortest_paths(GRAPH, hi, lo, mid)),
    lambda hi, lo, mid: list(simple_paths(GRAPH, hi, lo, 3, mid)),
    lambda hi, lo, mid: cut_labels(GRAPH, hi, lo),
    lambda hi, lo, mid: cut_flows(GRAPH, hi, lo),
    lambda hi, lo, mid: cut_channels(GRAPH, CHANNELS, hi, lo),
    lambda hi, lo, mid: GRAPH.without(mid).rows,
]


@pytest.mark.parametrize("ask", QUESTIONS)
def test_a_set_is_given_as_bits_by_name_or_as_several_names(
    ask: Callable[[Any, Any, Any], object],
) -> None:
    """The answers are the same; what is nothing of the three is one clear error."""
    expected = ask(HI, LO, MID)
    assert ask("hi", "lo", "mid") == expected
    assert ask(["hi"], ("lo",), {"mid"}) == expected
    assert ask("h?", "l*", "m*d") == expected
    assert expected
    with pytest.raises(InputError, match=r"there is no label '(high|low)'"):
        ask("high", "low", "high")


def test_several_names_stand_for_all_of_them() -> None:
    """In one text with commas, as in a claim, or as a list; ~ is all but those."""
    both = GRAPH.bits(["mid", "side"])
    assert reach(GRAPH, "hi", "mid, side") == reach(GRAPH, "hi", ["mid", "side"]) == 0
    assert reach(GRAPH, "hi", both) == 0
    assert reach(GRAPH, "hi") == both | LO
    assert reach(GRAPH, "hi", ~both) == both


def test_what_is_no_set_is_refused_in_one_line() -> None:
    """A wrong type is a TypeError that says how; bits beyond the graph are none of its labels."""
    wrong: Any
    for wrong in (None, 3.5, True, [1], b"hi", [HI, LO]):
        with pytest.raises(TypeError, match="labels are given by name"):
            reach(GRAPH, wrong)
    with pytest.raises(InputError, match="64 is no set of this graph's 4 labels"):
        reach(GRAPH, 64)
    wrong = "policy.xml"
    with pytest.raises(TypeError, match="a Graph is asked, as policy_graph makes one, not str"):
        reach(wrong, "hi")
    with pytest.raises(TypeError, match=r"a stack is asked, as load_stack\(\[FILE\]\) .* not str"):
        policy_graph(wrong)


def test_a_claim_is_given_as_text() -> None:
    """It is read as parse_claim does; what is none is refused, and says what one is."""
    for text in ("hi -/-> lo", "hi -/-> lo except mid, side"):
        assert prove(GRAPH, text) == prove(GRAPH, parse_claim(text))
    assert prove(GRAPH, "hi -/-> lo").path == ("hi", "mid", "lo")
    with pytest.raises(InputError, match="a claim is written"):
        prove(GRAPH, "hi -> lo")
    wrong: Any = ["hi", "lo"]
    with pytest.raises(TypeError, match=r"a claim is a text such as .* not list"):
        prove(GRAPH, wrong)


def test_an_option_of_one_name_is_that_name() -> None:
    """Not its letters; a list does for a tuple."""
    stack = load_stack([ROOT / "examples/two-banks/policy.xml"])
    one: Any
    for one in ("broker", ["broker"], ("broker",)):
        assert Options(exclude=one) == Options(exclude=("broker",))
        assert policy_graph(stack, Options(exclude=one)).about.excluded == ("broker",)
    assert Options(exclude_classes="argo").exclude_classes == ("argo",)  # type: ignore[arg-type]
    assert Options(contexts=["u:r:t"]).contexts == ("u:r:t",)  # type: ignore[arg-type]
    for one in (1, [1], None):
        with pytest.raises(TypeError, match="exclude holds names"):
            Options(exclude=one)


def test_rules_are_asked_of_two_labels() -> None:
    """A name that there is not, or that stands for several, is an error and no KeyError."""
    stack = load_stack([ROOT / "examples/two-banks/policy.xml"])
    graph = policy_graph(stack)
    assert graph.reasons("bank-a", "broker")
    with pytest.raises(InputError, match="there is no label 'bank'"):
        graph.reasons("bank", "broker")
    with pytest.raises(InputError, match="stands for labels"):
        graph.reasons("bank-*", "broker")


def test_a_graph_says_in_a_line_what_it_is() -> None:
    """How many labels and flows, and of what; not where it lies in memory."""
    assert repr(GRAPH) == "<Graph: 4 labels, 4 flows>"
    stack = load_stack([ROOT / "examples/two-banks/policy.xml"])
    assert repr(policy_graph(stack)).startswith("<Graph of acm: 6 labels, ")
