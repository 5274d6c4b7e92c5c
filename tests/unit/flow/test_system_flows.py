"""The graph of a system, its pictures, and what changes from one policy to another."""

from __future__ import annotations

import re
import subprocess
from itertools import permutations
from pathlib import Path

import pytest

from skerry.errors import SkerryError
from skerry.flow import draw
from skerry.flow.graph import Graph
from skerry.flow.policy import Options, policy_graph
from skerry.node.assertions import claims_of, violations
from skerry.node.flow_changes import policy_flow_changes, system_flow_changes
from skerry.node.flows import SystemFlows
from skerry.node.picture import draw_possible, draw_system
from skerry.node.setup import Setup, load_setup
from skerry.policy.difference import Change
from skerry.policy.load import load_policy
from skerry.xsm.stack import Stack
from tests.support.simulated import POLICY, SYSTEM, write_system
from tests.unit.flow.sample import handed_pairs, pairs

EXAMPLES = Path(__file__).parents[3] / "examples"


def small(folder: Path, system: str = SYSTEM, policy: str = POLICY) -> Setup:
    """Load the small system, or one like it."""
    return load_setup(Path(write_system(folder, system, policy)))


def test_what_is_possible_is_more_than_what_is_configured(tmp_path: Path) -> None:
    """The clerk has no channel, but one to red could be bound; blue is red's rival."""
    flows = SystemFlows(small(tmp_path))
    both = {("red", "broker"), ("broker", "red"), ("blue", "broker"), ("broker", "blue")}
    assert pairs(flows.graph("configured")) == both
    assert pairs(flows.graph()) == both | {("red", "clerk"), ("clerk", "red")}


def test_a_wall_keeps_two_domains_apart_that_share_a_type(tmp_path: Path) -> None:
    """Red and blue may share; only the wall is between them. The control: no conflict set."""
    claim = SYSTEM.replace('except = ["red", "blue"]', 'except = ["broker"]').replace(
        "clerk -> broker", "red -> blue"
    )
    assert violations(small(tmp_path, claim)) == []
    wall = POLICY[POLICY.index("[[chinese-wall.conflicts]]") : POLICY.index("[labels.system]")]
    (broken,) = violations(small(tmp_path, claim, POLICY.replace(wall, "")))
    assert broken.path == ("red", "blue")


def test_a_one_way_policy_gives_flows_of_one_direction() -> None:
    """In the diode's system nothing flows back, and each flow says by which hook and rules."""
    flows = SystemFlows(load_setup(EXAMPLES / "diode/system.toml"))
    graph = flows.graph()
    found = pairs(graph)
    assert found
    assert not {(two, one) for one, two in found} & found
    one, two = next(iter(found))
    assert graph.reasons(one, two)[0] == "possible as channel_one_way, memory_read"
    assert "may" in " ".join(graph.reasons(one, two)[1:])


@pytest.mark.parametrize("name", ["two-banks", "one-guard", "diode"])
def test_the_evidence_of_a_system_is_its_graph(name: str) -> None:
    """Pair by pair, the checker is handed what the graph holds; configured ones too."""
    setup = load_setup(EXAMPLES / name / "system.toml")
    flows, plain = SystemFlows(setup), SystemFlows(setup, plainly=True)
    for extent in ("possible", "configured"):
        graph = flows.graph("possible" if extent == "possible" else "configured")
        handed = plain.evidence(extent == "configured")
        assert handed_pairs(flows.names, handed) == pairs(graph)


def test_domains_of_a_label_that_is_there_cost_the_checker_nothing(tmp_path: Path) -> None:
    """It is handed as many sets, with more in them: 60 clerks for one."""
    path = Path(write_system(tmp_path))
    few = SystemFlows(load_setup(path), plainly=True)
    clerks = "".join(
        f'[domains.more{n}]\nlabel = "clerk"\nmachine = "simulator"\n' for n in range(60)
    )
    path.write_text(f"{path.read_text()}\n{clerks}")
    many = SystemFlows(load_setup(path), plainly=True)
    assert len(many.names) == len(few.names) + 60
    assert len(many.evidence()) == len(few.evidence())
    assert handed_pairs(many.names, many.evidence()) == pairs(many.graph())


def test_a_configured_flow_names_its_channel() -> None:
    """The reason of an edge is the file's channel and why the policy allows it."""
    graph = SystemFlows(load_setup(EXAMPLES / "two-banks/system.toml")).graph("configured")
    first, *rest = graph.reasons("broker", "bank-a")
    assert first == "configured as stream orders-a"
    assert any("trade-a in common" in text and "policy.xml:" in text for text in rest)


def test_a_label_stands_for_all_domains_that_have_it() -> None:
    """Labels are groups of a system's graph, and assertions become claims with their lines."""
    setup = load_setup(EXAMPLES / "two-banks/system.toml")
    graph = SystemFlows(setup).graph()
    assert graph.named(graph.find("bank-a")) == ("bank-a",)
    claims = claims_of(setup)
    assert [str(claim) for claim in claims] == [
        "bank-a -/-> bank-b except broker",
        "bank-b -/-> bank-a except broker",
    ]
    lines = (EXAMPLES / "two-banks/system.toml").read_text().splitlines()
    assert all("never" in lines[claim.line - 1] for claim in claims)


def test_the_picture_of_a_system_has_its_domains_and_channels(tmp_path: Path) -> None:
    """A box for each domain, coloured by label; refused channels only on request, dashed."""
    refused = (
        SYSTEM + '\n[[channels]]\nkind = "stream"\nfrom = "clerk"\nto = "broker"\nname = "no"\n'
    )
    setup = small(tmp_path, refused)
    plain, with_refused = (draw.dot_text(draw_system(setup, refused=r)) for r in (False, True))
    assert plain.count("fillcolor") == 4
    assert plain.count("->") == 2
    assert "dashed" not in plain
    assert with_refused.count("->") == 3
    assert with_refused.count("dashed") == 1
    colours = re.findall(r'label="(\w+).*?fillcolor="([\d. ]+)"', plain)
    assert len({colour for _, colour in colours}) == 4
    same = draw.dot_text(
        draw_system(small(tmp_path, SYSTEM.replace('label = "clerk"', 'label = "red"')))
    )
    hues = dict(re.findall(r'label="(\w+).*?fillcolor="([\d. ]+)"', same))
    assert hues["clerk"] == hues["red"] != hues["broker"]


def test_a_one_way_channel_is_an_arrow_and_a_two_way_one_has_two_heads(tmp_path: Path) -> None:
    """`dir=both` stands where information flows both ways."""
    one_way = SYSTEM.replace('name = "orders"\n', 'name = "orders"\none-way = true\n')
    text = draw.dot_text(draw_system(small(tmp_path, one_way)))
    arrows = [line for line in text.splitlines() if "->" in line]
    assert ["dir=both" in line for line in arrows] == [False, True]


def test_what_is_possible_is_drawn_label_by_label(tmp_path: Path) -> None:
    """Domains of one label are one box that says whether they may exchange among themselves."""
    more = SYSTEM.replace("[domains.clerk]", '[domains.red2]\nlabel = "red"\n'
                          'machine = "simulator"\n\n[domains.clerk]')  # fmt: skip
    setup = small(tmp_path, more)
    drawing = draw_possible(setup, SystemFlows(setup).graph())
    boxes = {box.label: box for box in drawing.boxes}
    assert boxes["red"].names == ("red", "red2")
    assert boxes["red"].among
    assert not boxes["blue"].among
    assert len(drawing.arrows) == 3


def test_labels_with_the_same_flows_are_one_box_where_there_are_many() -> None:
    """200 labels in ten closed groups are drawn as ten boxes, and as 200 on request."""
    names = [f"n{number}" for number in range(200)]
    edges = [(a, b) for a, b in permutations(names, 2) if int(a[1:]) % 10 == int(b[1:]) % 10]
    graph = Graph.from_edges([*edges, *((a, "hub") for a in names)], names)
    drawing = draw.draw_graph(graph, "many")
    assert len(drawing.boxes) == 11
    assert sum(len(box.names) for box in drawing.boxes) == 201
    assert sum(box.among for box in drawing.boxes) == 10
    assert len(drawing.arrows) == 10
    assert len(draw.draw_graph(graph, "many", merge=False).boxes) == 201
    assert "and 14 more" in draw.dot_text(drawing)


def test_a_picture_nobody_could_read_is_refused() -> None:
    """More boxes than the limit is an error with what to do."""
    names = [f"n{number}" for number in range(draw.MAX_DRAWN + 1)]
    edges = [(names[n], names[n + 1]) for n in range(draw.MAX_DRAWN)]
    with pytest.raises(SkerryError, match="nobody could read"):
        draw.draw_graph(Graph.from_edges(edges), "chain")


def test_a_name_can_not_end_a_string_or_be_markup() -> None:
    """Quotes, backslashes and control characters of a name stay inside its string."""
    graph = Graph.from_edges([('a"]; evil [x="', "b\\N\n\x1b"), ("<b>", 'a"]; evil [x="')])
    text = draw.dot_text(draw.draw_graph(graph, 'ti"tle'))
    for line in text.splitlines():
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", line)
        assert '"' not in bare
        assert "evil" not in bare
    assert "\x1b" not in text


def test_graphviz_accepts_what_is_written(tmp_path: Path) -> None:
    """The SVG has a node for each box and an edge for each arrow, with hostile names too."""
    graph = Graph.from_edges([('a"]; evil [x="', "b\\N"), ("<b>", "c"), ("c", "<b>")])
    made = draw.svg(draw.dot_text(draw.draw_graph(graph, "title"))).decode()
    assert made.count('class="node"') == 4
    assert made.count('class="edge"') == 2
    setup = small(tmp_path)
    assert draw.svg(draw.dot_text(draw_system(setup))).count(b'class="node"') == 4


def test_without_graphviz_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: what is missing and how to get it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SkerryError) as caught:
        draw.svg("digraph {}")
    assert "apt-get install graphviz" in str(caught.value)


def test_graphviz_own_words_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dot that fails is an error with its words, and no empty picture."""
    stand_in = tmp_path / "dot"
    stand_in.write_text("#!/bin/sh\necho 'bad luck' >&2\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(SkerryError, match="bad luck"):
        draw.svg("digraph {}")
    assert subprocess.run([stand_in], check=False, capture_output=True).returncode == 1


def changes(found: list[Change], kind: str) -> dict[str, set[tuple[str, str]]]:
    """Return, by effect, the pairs of one kind."""
    result: dict[str, set[tuple[str, str]]] = {"allowed": set(), "denied": set()}
    for change in found:
        if change.kind == kind:
            result[change.effect] |= {(a, b) for a in change.sources for b in change.targets}
    return result


def test_flows_that_appear_and_vanish_are_listed_direct_and_by_chains(tmp_path: Path) -> None:
    """The broker loses its type and the clerk gets it: exactly the pairs that two graphs differ in.

    A label that one policy lacks has no flow there.
    """
    (tmp_path / "old.toml").write_text(POLICY)
    changed = POLICY.replace('[labels.clerk]\nste = ["books"]', '[labels.clerk]\nste = ["trade"]')
    changed = changed.replace("[labels.broker]", "[labels.dealer]")
    (tmp_path / "new.toml").write_text(changed)
    old, new = (load_policy(tmp_path / name) for name in ("old.toml", "new.toml"))
    found = list(policy_flow_changes(old, new, Options()))
    before, after = (pairs(policy_graph(Stack([module]))) for module in (old, new))
    direct = changes(found, "flow")
    assert direct["allowed"] == after - before
    assert direct["denied"] == before - after
    assert ("clerk", "dealer") in direct["allowed"]
    assert ("broker", "red") in direct["denied"]
    reach = changes(found, "reach")
    assert ("broker", "system") in reach["denied"]
    assert ("clerk", "system") not in reach["denied"] | reach["allowed"]
    assert list(policy_flow_changes(old, old, Options())) == []


def test_flows_of_a_system_are_compared_with_all_that_decides(tmp_path: Path) -> None:
    """The small system's domains under its policy, and under one where the clerk shares more."""
    path = Path(write_system(tmp_path))
    (tmp_path / "new.toml").write_text(
        POLICY.replace('ste = ["books"]', 'ste = ["books", "trade"]')
    )
    old, new = (load_policy(tmp_path / name) for name in ("policy.toml", "new.toml"))
    direct = changes(list(system_flow_changes(path, old, new)), "flow")
    assert direct["allowed"] == {("clerk", "broker"), ("broker", "clerk")}
    assert direct["denied"] == set()


SHELF = """
[resources.ledger]
kind = "disk"
label = "ledger"
file = "ledger.img"
"""


def with_shelf(folder: Path, red: str, clerk: str) -> Setup:
    """Load the small system with a disk, used by red and by the clerk as they are told."""
    system = SYSTEM
    for name, uses in (("red", red), ("clerk", clerk)):
        if uses:
            head = f"[domains.{name}]\n"
            system = system.replace(head, f'{head}uses = ["{uses}"]\n')
    policy = POLICY + '\n[resources.ledger]\nste = "books"\n'
    return small(folder, system + SHELF, policy)


@pytest.mark.parametrize(
    ("red", "clerk", "flows"),
    [
        ("ledger", "ledger", {("red", "ledger"), ("ledger", "red"),
                              ("clerk", "ledger"), ("ledger", "clerk")}),
        ("ledger", "ledger:ro", {("red", "ledger"), ("ledger", "red"), ("ledger", "clerk")}),
        ("ledger:ro", "", {("ledger", "red")}),
    ],
)  # fmt: skip
def test_a_disk_takes_what_is_written_and_gives_it_to_who_reads(
    red: str, clerk: str, flows: set[tuple[str, str]], tmp_path: Path
) -> None:
    """A use that reads and writes is both ways, one that only reads goes to the domain alone."""
    found = SystemFlows(with_shelf(tmp_path, red, clerk))
    assert {pair for pair in pairs(found.graph("configured")) if "ledger" in pair} == flows
    both = {("red", "ledger"), ("clerk", "ledger")}
    possible = {pair for pair in pairs(found.graph()) if "ledger" in pair}
    assert possible == both | {(two, one) for one, two in both}
    text = draw.dot_text(draw_system(with_shelf(tmp_path, red, clerk)))
    assert "cylinder" in text
