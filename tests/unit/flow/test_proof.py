"""Claims, their proofs, and the checker that must not be fooled."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import InputError
from skerry.flow import verify
from skerry.flow.claim import MAX_NAMES, Claim, parse_claim, parse_claims
from skerry.flow.graph import Graph
from skerry.flow.proof import Proof, certificate, prove
from skerry.flow.verify import Unproven, check

CHAIN = [("a", "g"), ("g", "b"), ("a", "c"), ("c", "a"), ("d", "b")]


def proven(claim: str, edges: list[tuple[str, str]] | None = None) -> tuple[Graph, Proof]:
    """Return a graph and what comes of a claim in it."""
    graph = Graph.from_edges(edges or CHAIN)
    return graph, prove(graph, parse_claim(claim))


def flows_of(graph: Graph) -> list[tuple[int, int]]:
    """Return a graph's flows as the checker takes them."""
    return [(1 << number, row) for number, row in enumerate(graph.rows)]


@pytest.mark.parametrize("seed", range(200))
def test_a_claim_holds_or_a_path_breaks_it_and_the_checker_agrees(seed: int) -> None:
    """At random: a proof is accepted; where there is none, the path is real and avoids `except`."""
    chance = random.Random(seed)
    names = [f"n{number}" for number in range(8)]
    edges = [tuple(chance.sample(names, 2)) for _ in range(chance.randrange(4, 14))]
    graph = Graph.from_edges([(one, two) for one, two in edges], names)
    drawn = chance.sample(names, chance.randrange(2, 7))
    claim = Claim((drawn[0],), (drawn[1],), tuple(drawn[2:]))
    proof = prove(graph, claim)
    reached, trusted = {drawn[0]}, set(drawn[2:])
    while more := {t for s, t in edges if s in reached and t not in trusted} - reached:
        reached |= more
    assert proof.holds is (drawn[1] not in reached)
    if proof.holds:
        assert set(proof.closed) == reached
        written = json.loads(certificate(graph.about, [proof]))
        assert check(written, graph.names, flows_of(graph)) == 1
    else:
        assert set(pairwise(proof.path)) <= set(edges)
        assert not set(proof.path) & trusted
        assert (proof.path[0], proof.path[-1]) == (drawn[0], drawn[1])


def _with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda proof: proof.update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with(), ""),
        (_with(closed=["a"]), "a may send to c"),
        (_with(closed=["c"]), "lacks a source"),
        (_with(closed=["a", "c", "g"]), "holds what it must not"),
        (_with(closed=["a", "c", "g"], **{"except": []}), "g may send to b"),
        (_with(closed=["a", "c", "b"]), "holds what it must not"),
        (_with(**{"except": []}), "a may send to g"),
        (_with(**{"except": ["g", "b"]}), "on two sides"),
        (_with(**{"except": ["g", "a"]}), "on two sides"),
        (_with(to=[]), "a side is empty"),
        (_with(**{"from": []}), "a side is empty"),
        (_with(to=["a"]), "on two sides"),
        (_with(to=["z"]), "no label 'z'"),
        (_with(closed="ac"), "no list of labels"),
        (_with(closed=None), "no list of labels"),
        (_with(closed=[1]), "no list of labels"),
    ],
)
def test_a_certificate_that_was_changed_proves_nothing(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    """Each change of a good certificate is refused for its reason; unchanged it is accepted."""
    graph, proof = proven("a -/-> b except g")
    written = json.loads(certificate(graph.about, [proof]))
    change(written["proofs"][0])
    if not words:
        assert check(written, graph.names, flows_of(graph)) == 1
        return
    with pytest.raises(Unproven, match=words):
        check(written, graph.names, flows_of(graph))


@pytest.mark.parametrize(
    "written", [None, [], {}, {"format": "other"}, {"format": verify.FORMAT},
                {"format": verify.FORMAT, "proofs": []}, {"format": verify.FORMAT, "proofs": [3]}]
)  # fmt: skip
def test_what_is_no_certificate_proves_nothing(written: object) -> None:
    """Whatever JSON it is, it is refused, and not with another error."""
    with pytest.raises(Unproven):
        check(written, ["a", "b"], [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from("abcg"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["from", "to", "except", "closed", "claim"]), inner)
    ),
    max_leaves=12,
)


@given(st.lists(JSON, min_size=1, max_size=3))
def test_whatever_stands_in_a_certificate_it_is_refused_or_true(proofs: list[Any]) -> None:
    """No JSON makes the checker fail otherwise; what it accepts is a claim that `prove` proves."""
    graph = Graph.from_edges(CHAIN)
    written = {"format": verify.FORMAT, "proofs": proofs}
    try:
        check(written, graph.names, flows_of(graph))
    except Unproven:
        return
    for proof in proofs:
        sources, sinks, trusted = (tuple(proof[side]) for side in ("from", "to", "except"))
        assert prove(graph, Claim(sources, sinks, trusted)).holds


@given(st.text(max_size=30) | st.lists(st.sampled_from(
    ["a", "b", ",", " ", "-/->", " except ", "g", "*", "z"]), max_size=9).map("".join))  # fmt: skip
def test_whatever_is_typed_is_a_claim_or_an_input_error(text: str) -> None:
    """A claim that is accepted has two sides that are not empty and do not meet."""
    graph = Graph.from_edges(CHAIN)
    try:
        proof = prove(graph, parse_claim(text))
    except InputError:
        return
    assert proof.sources
    assert proof.sinks
    assert not set(proof.sources) & set(proof.sinks)


def test_a_flow_more_breaks_an_old_certificate() -> None:
    """A certificate is for the flows it was made over: with another one it fails."""
    graph, proof = proven("a -/-> b except g")
    written = json.loads(certificate(graph.about, [proof]))
    more = Graph.from_edges([*CHAIN, ("c", "d")], graph.names)
    with pytest.raises(Unproven, match="c may send to d"):
        check(written, more.names, flows_of(more))


def test_what_is_left_out_counts_as_trusted_and_can_not_be_a_side() -> None:
    """Without `g` the claim needs no exception; a claim about `g` itself is no proof."""
    graph = Graph.from_edges(CHAIN)
    without = graph.without(graph.find("g"))
    written = json.loads(certificate(without.about, [prove(without, parse_claim("a -/-> b"))]))
    assert check(written, graph.names, flows_of(graph), ["g"]) == 1
    with pytest.raises(Unproven, match="a may send to g"):
        check(written, graph.names, flows_of(graph))
    written["proofs"][0]["to"] = ["g"]
    with pytest.raises(Unproven, match="left out"):
        check(written, graph.names, flows_of(graph), ["g"])


def test_the_checker_is_small_and_stands_alone(tmp_path: Path) -> None:
    """Under 100 lines, the standard library only; as a program it checks two files."""
    path = Path(str(verify.__file__))
    text = path.read_text()
    assert len(text.splitlines()) < 100
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        )
    }  # fmt: skip
    assert imported <= sys.stdlib_module_names
    graph, proof = proven("a -/-> b except g")
    (tmp_path / "proof").write_bytes(certificate(graph.about, [proof]))
    rows = zip(graph.names, graph.rows, strict=True)
    flows = {name: graph.named(row) for name, row in rows}
    for left_out, code in (([], 0), (["a"], 1)):
        content = {"labels": graph.names, "flows": flows, "excluded": left_out}
        (tmp_path / "flows").write_text(json.dumps(content))
        argv = ["/usr/bin/python3", str(path), str(tmp_path / "proof"), str(tmp_path / "flows")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={})
        assert done.returncode == code, done.stderr
        assert done.stdout == ("" if code else "verified: a -/-> b except g\n")
        assert done.stderr.startswith("not verified: Unproven: ") is bool(code)
    for words in ([], [str(tmp_path / "proof")] * 2, ["/nonexistent"] * 2):
        argv = ["/usr/bin/python3", str(path), *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={})
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("a b", "is written 'A -/-> B'"),
        ("a -> b", "is written 'A -/-> B'"),
        ("-/-> b", "left of the arrow"),
        ("a -/->", "right of the arrow"),
        ("a -/-> , ", "right of the arrow"),
        ("a -/-> b except ,", "behind except"),
        ("a -/-> except g", "right of the arrow"),
        ("a -/-> z", "no label 'z'"),
        ("zz -/-> b", "no label 'zz'"),
        ("a -/-> b except z", "no label 'z'"),
        ("a -/-> a", "a stands on both sides"),
        ("a,b -/-> b", "b stands on both sides"),
        ("a -/-> b except a", "a is a source and trusted"),
        ("a -/-> b except b", "b is a sink and trusted"),
        ("x* -/-> b", "no label matches 'x*'"),
        ("nobody -/-> b", "stands for no label"),
        (",".join(["a"] * (MAX_NAMES + 1)) + " -/-> b", "names left of the arrow"),
    ],
)
def test_a_claim_that_says_nothing_is_an_error(claim: str, words: str) -> None:
    """No such label, contradictions, an empty side: an error, and never a silent truth."""
    plain = Graph.from_edges(CHAIN)
    graph = Graph(plain.names, plain.rows, groups={"nobody": 0, "ends": plain.bits(["a", "b"])})
    with pytest.raises(InputError) as caught:
        prove(graph, parse_claim(claim))
    assert words in str(caught.value)


def test_sides_may_be_lists_groups_and_patterns() -> None:
    """`c,d`, a group and a pattern each stand for their labels."""
    plain = Graph.from_edges(CHAIN)
    graph = Graph(plain.names, plain.rows, groups={"ends": plain.bits(["b", "g"])})
    proof = prove(graph, parse_claim(" b , [g] -/-> c,d,a "))
    assert (proof.sources, set(proof.sinks)) == (("g", "b"), {"a", "c", "d"})
    assert proof.holds
    assert prove(graph, parse_claim("ends -/-> a")).sources == ("g", "b")


def test_a_name_with_commas_is_put_together_again() -> None:
    """`acm=a,flask=t` is one label, also in a list of several."""
    names = ["acm=a,flask=t", "acm=b,flask=t", "u:r:t:s0:c1,c3"]
    graph = Graph.from_edges([(names[0], names[1])], names)
    proof = prove(graph, parse_claim(f"{names[1]},{names[2]} -/-> {names[0]}"))
    assert (set(proof.sources), proof.sinks) == (set(names[1:]), (names[0],))
    assert proof.holds


@pytest.mark.parametrize(
    ("added", "text", "words"),
    [
        ("a,c", "a,c", "can be read as 'a' and 'c' or as 'a,c'"),
        ("a,c", "d,a,c,g", "can be read as 'd' and 'a' and 'c' and 'g'"),
        ("d,[ac]", "d,[ac]", "can be read as"),
        ("[ac]", "[ac]", "is a label, and stands for others as well"),
        ("*", "*", "is a label, and stands for others as well"),
        ("ends", "ends", "is a label, and stands for others as well"),
    ],
)
def test_a_label_does_not_take_the_place_of_others(added: str, text: str, words: str) -> None:
    """A name with a comma or a `*` that is added makes the claim an error, and not another claim.
    The controls: without that label it is read, and where only one reading is one it is that."""
    edges = [("a", "b"), ("c", "b"), ("d", "b"), ("g", "b"), ("x,y", "b"), ("z[1]", "b")]
    plain = Graph.from_edges(edges)
    groups = {"ends": plain.bits(["a", "g"])}
    before = Graph(plain.names, plain.rows, groups=groups)
    if text != "*":
        assert prove(before, parse_claim(f"b -/-> {text}")).holds
    assert prove(before, parse_claim("b -/-> z[1],x,y")).sinks == ("x,y", "z[1]")
    more = Graph.from_edges(edges, [added])
    after = Graph(more.names, more.rows, groups={"ends": more.bits(["a", "g"])})
    with pytest.raises(InputError) as caught:
        prove(after, parse_claim(f"b -/-> {text}"))
    assert words in str(caught.value)


def test_a_file_of_claims_names_every_bad_line() -> None:
    """All problems are found at once, each with its line; comments and blanks are none."""
    good = parse_claims("# all\n\n a -/-> b except g\nc -/-> d\n", "claims")
    assert [(str(claim), claim.line) for claim in good] == [
        ("a -/-> b except g", 3),
        ("c -/-> d", 4),
    ]
    with pytest.raises(InputError) as caught:
        parse_claims("a -> b\nc -/-> d\n-/-> e\n", "claims")
    assert [problem.line for problem in caught.value.problems] == [1, 3]
    with pytest.raises(InputError, match="no claim"):
        parse_claims("# nothing\n", "claims")
