"""Who has written a disk before is a source of it in every question about a system."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from skerry.cli.main import cli
from skerry.errors import InputError
from skerry.label import Label
from skerry.node import paths
from skerry.node.assertions import violations
from skerry.node.flow_changes import graph_changes, system_flow_changes
from skerry.node.flows import SystemFlows
from skerry.node.picture import draw_possible, draw_system
from skerry.node.setup import Setup, carried, load_setup
from skerry.node.written import Written, lives_on, with_writers
from skerry.policy.source import Source, make_policy
from skerry.xsm.explain import Refused
from tests.support.past import BEFORE, GONE, HEAD, MATE, PAST, POLICY, RELABELLED, write
from tests.unit.flow.sample import handed_pairs, pairs

P = Label((("acm", "p"),))
STRANGER = Label((("acm", "stranger"),))


def load(folder: Path, system: str, *labels: Label, policy: str = POLICY) -> Setup:
    """Load a system whose disk some labels have written."""
    setup = load_setup(write(folder, system, policy))
    written = {"d": frozenset(labels)} if labels else {}
    return msgspec.structs.replace(setup, written=written)


def remember(setup: Setup, *labels: Label) -> None:
    """Keep in the state directory that labels have written a system's disk."""
    paths.make_private(paths.state_dir())
    written = Written(paths.written_file())
    asyncio.run(written.keep(lives_on(setup.system.resources["d"]), labels, setup.stack))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of its own."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("system", "source", "path"),
    [
        (GONE, "label:p", ("before:p", "d", "n")),
        (RELABELLED, "p", ("p", "d", "n")),
    ],
)
def test_a_label_that_wrote_is_a_source_though_no_domain_has_it(
    tmp_path: Path, system: str, source: str, path: tuple[str, ...]
) -> None:
    """The refusal says the path, and that it is history. The control: nobody wrote."""
    assert violations(load(tmp_path, system)) == []
    (broken,) = violations(load(tmp_path, system, P))
    assert broken.path == path
    words = f"never {source} -> n does not hold: {' -> '.join(path)} ({PAST})"
    assert broken.text == words
    assert broken.steps[0].rules == (PAST,)
    assert not broken.steps[1].rules[0].startswith("history")


def test_a_tpm_carries_who_wrote_its_state(tmp_path: Path) -> None:
    """It is released by nothing. The control: nobody wrote it."""
    chip = '[resources.t]\nkind = "tpm"\nlabel = "shelf"\n'
    setup = load(tmp_path, GONE.replace("p -> n", "p -> t") + chip)
    assert violations(setup) == []
    (broken,) = violations(msgspec.structs.replace(setup, written={"t": frozenset({P})}))
    assert broken.text.endswith("before:p -> t (history: the label p wrote t before)")


def test_a_label_of_the_past_can_be_named_and_only_a_known_one(tmp_path: Path) -> None:
    """As `LABEL`, `label:LABEL` and `before:LABEL`; one that nothing knows is an error."""
    graph = SystemFlows(load(tmp_path, GONE, P)).graph()
    for name in ("p", "label:p", "before:p"):
        assert graph.named(graph.find(name)) == ("before:p",)
    with pytest.raises(InputError, match="no label 'label:lost'"):
        violations(load(tmp_path, GONE.replace("label:p", "label:lost")))
    with pytest.raises(InputError, match="no label 'label:p'"):
        violations(load(tmp_path, GONE.replace("label:p -> n", "n -> label:p")))


def test_an_assertion_of_a_label_is_of_all_domains_that_have_it(tmp_path: Path) -> None:
    """Nobody wrote: it is the domain whose flow breaks it."""
    (broken,) = violations(load(tmp_path, GONE + BEFORE.split(HEAD)[1].split("[resources")[0]))
    assert broken.path == ("p", "n")


def test_what_came_to_a_writer_is_in_what_it_wrote(tmp_path: Path) -> None:
    """`m` may send to a domain labelled `p`, so it may have. Nothing else comes out of the past.

    The control: under a policy that lets it not, nothing of `m` is on the disk.
    """
    system = GONE.replace("label:p", "m") + MATE
    (broken,) = violations(load(tmp_path, system, P))
    assert broken.path == ("m", "before:p", "d", "n")
    assert violations(load(tmp_path, system)) == []
    shut = POLICY.replace('[labels.m]\nste = ["mine"]', '[labels.m]\nste = ["other"]')
    assert violations(load(tmp_path, system, P, policy=shut)) == []
    graph = SystemFlows(load(tmp_path, system, P)).graph()
    assert graph.named(graph.rows[graph.index("before:p")]) == ("d",)


def test_what_a_writer_may_have_read_or_been_told_by_another_is_in_what_it_wrote(
    tmp_path: Path,
) -> None:
    """Those that are no more exchanged with each other and with the disks as domains may."""
    graph = SystemFlows(load(tmp_path, GONE, P, Label((("acm", "m"),)))).graph()
    found = pairs(graph)
    assert {("before:m", "before:p"), ("before:p", "before:m"), ("d", "before:p")} <= found
    assert not {("d", "before:m"), ("before:p", "n"), ("before:m", "n")} & found


def test_a_label_that_the_policy_lacks_is_a_source_all_the_same(tmp_path: Path) -> None:
    """As the state calls it; of what came to it no policy can be asked."""
    setup = load(tmp_path, GONE.replace("label:p", "label:stranger"), STRANGER)
    (broken,) = violations(setup)
    assert broken.path == ("before:stranger", "d", "n")
    assert not [pair for pair in pairs(SystemFlows(setup).graph()) if pair[1].startswith("before:")]


def test_a_domain_that_may_write_no_more_still_has_written(tmp_path: Path) -> None:
    """A policy takes `p` the disk and keeps its label; the control: it has not written."""
    shut = POLICY.replace('[labels.p]\nste = ["mine", "shelf"]', '[labels.p]\nste = ["mine"]')
    system = RELABELLED.replace('"z"', '"p"')
    assert violations(load(tmp_path, system, policy=shut)) == []
    (broken,) = violations(load(tmp_path, system, P, policy=shut))
    assert broken.path == ("p", "d", "n")
    flows = SystemFlows(load(tmp_path, system, P, policy=shut))
    assert flows.flows("p", "d")
    assert flows.reasons("p", "d") == [PAST]


def test_a_flow_that_is_possible_now_is_said_first(tmp_path: Path) -> None:
    """History is then one more reason, and not the refusal's."""
    setup = load(tmp_path, BEFORE + '[[assert]]\nnever = "p -> d"\n', P)
    (broken,) = violations(setup)
    assert broken.text == "never p -> d does not hold: p -> d"
    assert broken.steps[0].rules[0].startswith("possible as")
    assert broken.steps[0].rules[-1] == PAST


def test_a_writer_is_found_under_the_next_policys_name(tmp_path: Path) -> None:
    """What is proven of another policy is proven of the writers as it calls them."""
    setup = load(tmp_path, RELABELLED, P)
    update = 'version = "2.0"\nfrom = { name = "tests.past", version = "1.0" }'
    text = POLICY.replace('version = "1.0"', update)
    text = text.replace("[labels.p]", '[labels.q]\nfrom = "p"')
    after = carried(setup, make_policy([Source("policy.toml", text.encode())]))
    assert after.written == {"d": {Label((("acm", "q"),))}}


@pytest.mark.parametrize("system", [GONE + MATE, RELABELLED + MATE])
@pytest.mark.parametrize(
    ("relabels", "operators"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_the_evidence_holds_the_history(
    tmp_path: Path, system: str, relabels: bool, operators: bool
) -> None:
    """Pair by pair, the checker of certificates is handed what the graph holds."""
    setup = load(tmp_path, system, P, STRANGER)
    flows, plain = (
        SystemFlows(setup, relabels=relabels, operators=operators, plainly=plainly)
        for plainly in (False, True)
    )
    found = handed_pairs(plain.names, plain.evidence())
    assert found == pairs(flows.graph())
    assert ("before:stranger", "d") in found
    past = "before:p" in plain.names  # with relabels, and of another name, domains may have it
    assert past is (not relabels)
    assert (("operator:system", "before:p") in found) is (operators and past)
    if not relabels:
        alone = SystemFlows(setup)
        handed = handed_pairs(alone.names, alone.evidence(configured=True))
        assert handed == pairs(alone.graph("configured"))
        assert ("before:stranger", "d") in handed


def test_a_proof_by_walls_counts_on_nothing_of_what_was_written_before(tmp_path: Path) -> None:
    """What the writer had touched no wall of now need have been told.

    The control: where nobody wrote, the same walls are counted.
    """
    graph = SystemFlows(load(tmp_path, RELABELLED, P)).graph()
    assert graph.forgets == 1 << graph.index("d")
    assert not SystemFlows(load(tmp_path, RELABELLED)).graph().forgets


def test_a_picture_of_what_is_possible_has_the_past_in_it(tmp_path: Path) -> None:
    """And one of the file's channels has not."""
    setup = load(tmp_path, GONE, P)
    drawn = draw_possible(setup, SystemFlows(setup).graph())
    assert [box.names for box in drawn.boxes] == [("n",), ("d",), ("before:p",)]
    assert [box.names for box in draw_system(setup).boxes] == [("n",), ("d",)]


def test_a_system_with_history_differs_from_the_same_without(tmp_path: Path) -> None:
    """By the flows, and by what a certificate is about."""
    without, since = (SystemFlows(load(tmp_path, GONE, *one)).graph() for one in ((), (P,)))
    assert without.about != since.about
    changes = [one for one in graph_changes(without, since) if one.kind == "flow"]
    assert [(one.effect, one.sources, one.targets) for one in changes] == [
        ("allowed", ("before:p",), ("d",))
    ]


@pytest.mark.usefixtures("home")
def test_the_commands_without_a_node_look_at_the_state(tmp_path: Path) -> None:
    """`check`, `plan` and `flow --system` refuse what the state refutes. The control: no state."""
    path = write(tmp_path, RELABELLED)
    run = CliRunner().invoke
    for command in ("check", "plan"):
        assert run(cli, [command, str(path)]).exit_code == 0
    claims = ["flow", "prove", "--system", str(path)]
    assert run(cli, claims).exit_code == 0
    remember(load_setup(path), P)
    for command in ("check", "plan"):
        done = run(cli, [command, str(path)])
        assert isinstance(done.exception, Refused)
        assert f"p -> d -> n ({PAST})" in str(done.exception)
    done = run(cli, claims)
    assert done.exit_code == 1
    assert PAST in done.output
    gone = write(tmp_path, GONE, name="gone.toml")
    done = run(cli, ["flow", "prove", "--system", str(gone), "p -/-> n"])
    assert done.exit_code == 1
    assert "before:p -> d -> n" in done.output


@pytest.mark.usefixtures("home")
def test_what_another_policy_changes_is_told_of_the_past_too(tmp_path: Path) -> None:
    """Under the next one `n` may read what `p` wrote. The control: no state."""
    shut = POLICY.replace('[labels.n]\nste = ["shelf"]', "[labels.n]\nste = []")
    path = write(tmp_path, RELABELLED)
    old, new = (make_policy([Source("p", text.encode())]) for text in (shut, POLICY))

    def gained() -> bool:
        modules = old.stack.modules[0], new.stack.modules[0]
        changes = list(system_flow_changes(path, *modules))
        assert changes
        return any("p" in one.sources and "n" in one.targets for one in changes)

    assert not gained()
    remember(load_setup(path), P)
    assert gained()


@pytest.mark.usefixtures("home")
def test_a_certificate_is_of_the_state_that_it_was_made_with(tmp_path: Path) -> None:
    """It is verified with history in it; once another has written, it is of something else."""
    system = GONE.replace("label:p", "m") + MATE
    shut = POLICY.replace('[labels.m]\nste = ["mine"]', '[labels.m]\nste = ["other"]')
    path, run = write(tmp_path, system, shut), CliRunner().invoke
    remember(load_setup(path), P)
    options = ["--system", str(path)]
    found = str(tmp_path / "proof.json")
    assert run(cli, ["flow", "prove", *options, "--certificate", found]).exit_code == 0
    done = run(cli, ["flow", "verify", *options, found])
    assert done.exit_code == 0, done.output
    remember(load_setup(path), P, Label((("acm", "n"),)))
    done = run(cli, ["flow", "verify", *options, found])
    assert done.exit_code != 0
    assert "made for something else" in str(done.exception)


@pytest.mark.usefixtures("home")
def test_a_certificate_without_the_history_is_not_verified(tmp_path: Path) -> None:
    """A closed set that leaves the edge of history out is not closed."""
    path, run = write(tmp_path, RELABELLED.replace("p -> n", "n -> p")), CliRunner().invoke
    remember(load_setup(path), P)
    options = ["--system", str(path)]
    found = tmp_path / "proof.json"
    assert run(cli, ["flow", "prove", *options, "--certificate", str(found)]).exit_code == 0
    made = json.loads(found.read_text())
    claim = {"claim": "p -/-> n", "from": ["p"], "to": ["n"], "except": [], "closed": ["p"]}
    found.write_text(json.dumps({**made, "proofs": [claim]}))
    done = run(cli, ["flow", "verify", *options, str(found)])
    assert done.exit_code != 0
    assert "not proven" in str(done.exception)


@pytest.mark.usefixtures("home")
def test_a_damaged_state_is_an_error_and_a_missing_one_knows_nobody(tmp_path: Path) -> None:
    """What it holds must not be left out of a proof unsaid."""
    setup = load_setup(write(tmp_path, RELABELLED))
    assert with_writers(setup).written == {}
    remember(setup, P)
    assert with_writers(setup).written == {"d": {P}}
    with paths.written_file().open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match="digest"):
        with_writers(setup)
