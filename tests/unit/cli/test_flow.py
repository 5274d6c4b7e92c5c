"""`skerry flow`: what is printed, the exit codes, and certificates from file to file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from skerry.cli.flow import flow
from skerry.cli.policy import policy
from skerry.errors import InputError, SkerryError
from tests.support import policies
from tests.support.simulated import SYSTEM as SMALL
from tests.support.simulated import write_system
from tests.unit.flow.test_history import HISTORY

EXAMPLES = Path(__file__).parents[3] / "examples"
BANKS = str(EXAMPLES / "two-banks/policy.xml")
SYSTEM = str(EXAMPLES / "two-banks/system.toml")


def run(*words: str) -> Result:
    """Run a command of the group."""
    return CliRunner().invoke(flow, words)


def ok(*words: str) -> str:
    """Run a command that must succeed, and return its output."""
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def rows(*words: str) -> list[dict[str, Any]]:
    """Run a command with `--json` and return its objects."""
    return [json.loads(line) for line in ok(*words, "--json").splitlines()]


def test_reach_lists_labels_forward_and_back() -> None:
    """One label a line; the count is apart from them; JSON holds both."""
    result = run("reach", "--policy", BANKS, "--from", "bank-a", "--avoid",
                 "broker, SystemManagement")  # fmt: skip
    assert result.stdout == "bookkeeping-a\n"
    assert "1 of 5 other labels reached" in result.stderr
    (found,) = rows("reach", "--policy", BANKS, "--to", "bookkeeping-b", "--exclude", "broker",
                    "--exclude", "SystemManagement")  # fmt: skip
    assert found == {"to": ["bookkeeping-b"], "count": 1, "of": 3, "labels": ["bank-b"]}


def test_paths_show_the_rules_of_each_flow() -> None:
    """Every shortest path, and where the policy lets each flow; that there is none is said."""
    found = rows("paths", "--policy", BANKS, "--from", "bank-a", "--to", "bank-b", "--all-shortest")
    assert [row["path"][1] for row in found] == ["SystemManagement", "broker"]
    assert "policy.xml:54" in found[1]["steps"][0]["rules"][0]
    text = ok("paths", "--policy", BANKS, "--from", "bank-a", "--to", "bank-b")
    assert text.splitlines()[0] == "bank-a -> SystemManagement -> bank-b"
    none = run("paths", "--policy", BANKS, "--from", "bank-a", "--to", "bank-b",
               "--avoid", "broker", "--avoid", "SystemManagement")  # fmt: skip
    assert (none.exit_code, none.stdout, none.stderr) == (0, "", "no path\n")


def test_simple_paths_are_bounded_and_counted() -> None:
    """At most so many flows; at the limit it is said that there are more."""
    words = ("paths", "--policy", BANKS, "--from", "bank-a", "--to", "bank-b")
    found = rows(*words, "--max-length", "3")
    assert all(len(row["path"]) <= 4 for row in found)
    assert len(found) > 2
    cut = run(*words, "--max-length", "3", "--limit", "2")
    assert "more than these 2 paths" in cut.stderr


def test_cut_names_whom_one_has_to_trust() -> None:
    """Two labels lie on every way from bank to bank; of flows it takes more."""
    (found,) = rows("cut", "--policy", BANKS, "--from", "bank-a", "--to", "bank-b")
    assert set(found["labels"]) == {"SystemManagement", "broker"}
    assert len(found["disjoint_paths"]) == 2
    (flows,) = rows("cut", "--policy", BANKS, "--from", "bank-a", "--to", "bank-b", "--flows")
    assert flows["count"] == len(flows["flows"]) == len(flows["disjoint_paths"]) >= 2
    direct = run("cut", "--policy", BANKS, "--from", "bank-a", "--to", "broker")
    assert isinstance(direct.exception, InputError)
    assert "directly" in str(direct.exception)


def test_cut_of_a_configured_system_names_the_fewest_channels(tmp_path: Path) -> None:
    """Three channels lead on to the broker and two from there: those two, by name, also in JSON."""
    names = [("red", "broker", f"p{n}") for n in (1, 2, 3)]
    names += [("broker", "blue", f"q{n}") for n in (1, 2)]
    head = SMALL[: SMALL.index("[[channels]]")]
    channels = "".join(
        f'[[channels]]\nkind = "stream"\nfrom = "{a}"\nto = "{b}"\nname = "{name}"\n'
        for a, b, name in names
    )
    system = write_system(tmp_path, head + channels)
    words = ("cut", "--system", system, "--configured", "--from", "red", "--to", "blue", "--flows")
    result = run(*words)
    assert result.stdout == "q1 (stream): broker <-> blue\nq2 (stream): broker <-> blue\n"
    assert "2 channels, and no fewer: 2 paths with no channel in common" in result.stderr
    (found,) = rows(*words)
    assert [one["name"] for one in found["channels"]] == ["q1", "q2"]
    assert found["count"] == 2
    assert [sorted(map(len, one)) for one in found["over"]] == [[2, 2], [2, 2]]
    assert found["disjoint_paths"] == [["red", "broker", "blue"]] * 2
    back = run(*words[:4], "--from", "blue", "--to", "red", "--flows")
    assert back.stdout.splitlines() == [
        "q1 (stream): blue <-> broker",
        "q2 (stream): blue <-> broker",
    ]
    none = run(*words[:4], "--from", "clerk", "--to", "red", "--flows")
    assert (none.stdout, none.stderr) == ("", "nothing flows, so there is nothing to cut\n")


def test_a_refuted_claim_is_exit_1_with_the_path() -> None:
    """Text and JSON show the path and its rules; the claim that holds is shown too."""
    words = ("prove", "--policy", BANKS, "bank-a -/-> bank-b except broker,SystemManagement",
             "bank-a -/-> bank-b")  # fmt: skip
    result = run(*words)
    assert result.exit_code == 1
    first, second, third = result.stdout.splitlines()[:3]
    assert first.startswith("proven: bank-a -/-> bank-b except")
    assert second == "refuted: bank-a -/-> bank-b"
    assert third == "bank-a -> SystemManagement -> bank-b"
    assert "does not hold" in result.stderr
    as_json = run(*words, "--json")
    found = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert [row["holds"] for row in found] == [True, False]
    assert found[1]["path"] == ["bank-a", "SystemManagement", "bank-b"]
    assert found[1]["steps"][0]["rules"]


@pytest.mark.parametrize(
    ("claim", "words"),
    [("bank-a -/-> bank-z", "bank-b"), ("bank-a -/-> bank-a", "both sides"),
     ("bank-a -/->", "right of the arrow"), ("bank-a -/-> bank-b except bank-b", "trusted")],
)  # fmt: skip
def test_a_claim_that_says_nothing_is_wrong_usage(claim: str, words: str) -> None:
    """Exit code 2, with what is wrong; no certificate is written."""
    result = run("prove", "--policy", BANKS, claim, "--certificate", "/nonexistent/file")
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2
    assert words in str(result.exception)


def test_all_claims_of_a_file_are_proven_at_once(tmp_path: Path) -> None:
    """One answer a claim; with one wrong line nothing is answered."""
    claims = tmp_path / "claims"
    claims.write_text("# the banks\nbank-a -/-> bank-b except broker,SystemManagement\n"
                      "bookkeeping-a -/-> bank-b except bank-a,SystemManagement\n")  # fmt: skip
    assert len(rows("prove", "--policy", BANKS, "--claims", str(claims))) == 2
    claims.write_text("bank-a -/-> bank-b\nnobody -/-> bank-a\nx -/-> y\n")
    result = run("prove", "--policy", BANKS, "--claims", str(claims))
    assert isinstance(result.exception, InputError)
    assert [problem.line for problem in result.exception.problems] == [2, 3, 3]
    assert result.stdout == ""


@pytest.mark.parametrize("with_xen", [False, True])
def test_a_certificate_is_verified_and_only_for_what_it_was_made_for(
    with_xen: bool, tmp_path: Path
) -> None:
    """From `prove` to `verify`; another policy, weight or exclusion is refused by name."""
    written = str(tmp_path / "proof.json")
    sources = ["--policy", BANKS] + (["--policy", str(policies.xen())] if with_xen else [])
    claim = "bank-a -/-> bank-b except broker,SystemManagement"
    if with_xen:
        claim = "acm=bank-a -/-> acm=bank-b except acm=broker,acm=SystemManagement"
    ok("prove", *sources, claim, "--certificate", written)
    assert "1 claim verified" in ok("verify", *sources, written)
    for other in (["--policy", str(policies.xen())], [*sources, "--exclude", "*bookkeeping-a*"]):
        result = run("verify", *other, written)
        assert isinstance(result.exception, SkerryError)
        assert "made for something else" in str(result.exception)
    content = json.loads(Path(written).read_text())
    content["proofs"][0]["except"] = []
    Path(written).write_text(json.dumps(content))
    result = run("verify", *sources, written)
    assert "not proven" in str(result.exception)


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("bank-a -/-> bank-b", "something else proven: bank-a -/-> bank-b except"),
        ("bookkeeping-a -/-> bank-b except broker,SystemManagement", "something else proven"),
        ("bank-a -/-> bank-b except broker,SystemManagement,bookkeeping-a", "something else"),
        ("bank-a -/-> nobody", "no label 'nobody'"),
        ("nothing flows", "is written"),
        (3, "is written"),
        (None, "is written"),
    ],
)
def test_a_certificate_whose_text_claims_something_else_is_refused(
    claim: object, words: str, tmp_path: Path
) -> None:
    """The sides may be proven; what people read must be what was. Unchanged it is verified."""
    written = tmp_path / "proof.json"
    true = "bank-a -/-> bank-b except broker,SystemManagement"
    ok("prove", "--policy", BANKS, true, "--certificate", str(written))
    assert f"verified: {true}\n" in ok("verify", "--policy", BANKS, str(written))
    content = json.loads(written.read_text())
    content["proofs"][0]["claim"] = claim
    written.write_text(json.dumps(content))
    result = run("verify", "--policy", BANKS, str(written))
    assert isinstance(result.exception, SkerryError)
    assert words in str(result.exception)
    assert "verified" not in result.stdout


def test_a_side_that_is_left_out_in_part_is_no_claim() -> None:
    """Of what is left out nothing is said, so a pattern or type that stands for some of it is
    refused; as trusted it may be named."""
    words = ("prove", "--policy", BANKS, "--exclude", "broker", "--exclude", "SystemManagement")
    ok(*words, "bank-a -/-> bank-b except broker")
    for claim in (
        "bank-a,broker -/-> bank-b",
        "bank-a -/-> b*b,broker",
        "type:trade-a -/-> bank-b",
    ):
        result = run(*words, claim)
        assert isinstance(result.exception, InputError)
        assert "left out, so nothing can be said of it" in str(result.exception)


def test_a_systems_assertions_are_proven_and_verified(tmp_path: Path) -> None:
    """Without a claim, those of the file; the certificate is checked decision by decision."""
    written = str(tmp_path / "proof.json")
    assert len(rows("prove", "--system", SYSTEM, "--certificate", written)) == 2
    assert "2 claims verified" in ok("verify", "--system", SYSTEM, written)
    shutil.copytree(EXAMPLES / "two-banks", tmp_path / "other")
    changed = tmp_path / "other/policy.xml"
    changed.write_text(changed.read_text().replace("<Type>books-a</Type>", "<Type>books-b</Type>"))
    result = run("verify", "--system", str(tmp_path / "other/system.toml"), written)
    assert isinstance(result.exception, SkerryError)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"about": 3}', "x" * 100, "[" * 100_000])
def test_what_is_no_certificate_is_refused(content: str, tmp_path: Path) -> None:
    """Whatever stands in the file, it is one error and never a proof."""
    file = tmp_path / "proof.json"
    file.write_text(content)
    result = run("verify", "--policy", BANKS, str(file))
    assert isinstance(result.exception, SkerryError)
    assert "verified" not in result.output


def test_the_graph_is_counted_written_and_drawn(tmp_path: Path) -> None:
    """Counts as text, all flows as JSON, DOT to a file and to the output."""
    assert ok("graph", "--policy", BANKS) == "6 labels, 18 flows\n"
    (found,) = rows("graph", "--policy", BANKS, "--exclude", "broker")
    assert found["excluded"] == ["broker"]
    assert set(found["flows"]["bank-a"]) == {"SystemManagement", "bookkeeping-a"}
    dot = tmp_path / "banks.dot"
    ok("graph", "--system", SYSTEM, "--dot", str(dot), "--refused")
    assert dot.read_text() == ok("graph", "--system", SYSTEM, "--dot", "-", "--refused")
    assert dot.read_text().count("dir=both") == 4
    assert "bank-a" in ok("graph", "--system", SYSTEM, "--dot", "-", "--possible")


def test_a_system_has_labels_for_sides_and_configured_channels(tmp_path: Path) -> None:
    """What is possible is asked unless --configured says otherwise."""
    path = write_system(tmp_path)
    (found,) = rows("reach", "--system", path, "--from", "red")
    assert set(found["labels"]) == {"broker", "blue", "clerk"}
    (found,) = rows("reach", "--system", path, "--from", "red", "--configured")
    assert set(found["labels"]) == {"broker", "blue"}


def test_a_system_is_proven_as_operators_could_make_it(tmp_path: Path) -> None:
    """Its assertion holds as it is; with relabels and with operators the path is shown."""
    path = write_system(tmp_path)
    ok("prove", "--system", path)
    for option, through in (("--relabels", "clerk@"), ("--operators", "operator:system")):
        result = run("prove", "--system", path, option, "--json")
        assert result.exit_code == 1
        assert through in " ".join(json.loads(result.stdout)["path"])
    written = str(tmp_path / "proof.json")
    trusting = "clerk -/-> broker except red,blue,operator"
    ok("prove", "--system", path, "--operators", trusting, "--certificate", written)
    assert "1 claim verified" in ok("verify", "--system", path, "--operators", written)
    assert isinstance(run("verify", "--system", path, written).exception, SkerryError)


def test_a_diff_of_policies_lists_flows_on_request(tmp_path: Path) -> None:
    """Direct flows and those over a chain, with their sign; none where nothing differs."""
    system = write_system(tmp_path)
    old, new = str(tmp_path / "policy.toml"), str(tmp_path / "new.toml")
    text = Path(old).read_text().replace('ste = ["books"]', 'ste = ["books", "trade"]')
    Path(new).write_text(text)
    result = CliRunner().invoke(policy, ["diff", old, new, "--flows", "--json"])
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {(row["kind"], row["effect"]) for row in found} == {("flow", "allowed")}
    words = ["diff", old, new, "--flows", "--system", system]
    shown = CliRunner().invoke(policy, words).stdout.splitlines()
    assert shown == [
        "+ allowed: broker -> clerk directly",
        "+ allowed: clerk -> broker directly",
    ]
    assert CliRunner().invoke(policy, ["diff", old, old, "--flows"]).stdout == "no difference\n"
    assert CliRunner().invoke(policy, ["diff", old, new, "--min-weight", "3"]).exit_code == 2


def test_a_claim_that_history_holds_has_no_certificate(tmp_path: Path) -> None:
    """It is proven and said to be so; the certificate's file is not made for it."""
    walls = tmp_path / "policy.toml"
    walls.write_text(HISTORY)
    written = tmp_path / "proof.json"
    words = ("prove", "--policy", str(walls), "bank-a -/-> bank-b", "--certificate", str(written))
    assert run(*words).exit_code == 1
    result = run(*words, "--history")
    assert result.exit_code == 0
    assert "(walls with history close every path from a clean beginning)" in result.stdout
    assert "earlier policy" in " ".join(run("prove", "--help").stdout.split())
    assert "without 1 claim" in result.stderr
    assert not written.exists()


def test_the_diode_is_proven_of_its_domains_and_of_its_types_above_single_bits() -> None:
    """As docs/flow.md says: its types refute it by events, each of which is one bit."""
    diode, claim = EXAMPLES / "diode", "high_t -/-> low_t except dom0_t"
    assert "proven: high -/-> low" in ok("prove", "--system", str(diode / "system.toml"))
    words = ("prove", "--policy", str(diode / "policy.conf"), claim)
    assert run(*words).stdout.splitlines()[1] == "high_t -> high_end -> low_t"
    assert run(*words, "--context", "*:*:*").exit_code == 1
    for more in (("--min-weight", "6"), ("--exclude-class", "event")):
        assert ok(*words, *more).startswith("proven: high_t")
    way = "low_t -/-> high_t except dom0_t"
    assert run(*words[:-1], way, "--min-weight", "6").exit_code == 1


def test_xens_policy_is_asked_with_weight_booleans_and_classes_left_out() -> None:
    """The options change the graph as they say."""
    xen = ("--policy", str(policies.xen()))
    counts = [
        int(ok("graph", *xen, *more).split()[2])
        for more in (
            (), ("--min-weight", "10"), ("--exclude-class", "argo"),
            ("--boolean", "prot_doms_locked=1"), ("--any-booleans",),
        )
    ]  # fmt: skip
    whole, heavy, without_argo, locked, any_ = counts
    assert heavy < whole
    assert without_argo < whole
    assert locked <= whole <= any_


def test_a_map_of_the_users_own_takes_the_place_of_the_shipped_one(tmp_path: Path) -> None:
    """Written by `map`, changed, and given back; one that lacks classes is an error by class."""
    own = tmp_path / "own.map"
    own.write_text(ok("map", "--policy", str(policies.xen())))
    xen = ("--policy", str(policies.xen()))
    assert ok("graph", *xen, "--map", str(own)) == ok("graph", *xen)
    lines = own.read_text().splitlines()
    start = lines.index("class argo 4")
    own.write_text("\n".join(lines[:start]))
    result = run("graph", *xen, "--map", str(own))
    assert isinstance(result.exception, InputError)
    assert "argo { enable register_any_source register_single_source send }" in str(
        result.exception
    )
    assert ok("graph", *xen, "--map", str(own), "--skip-unknown") == ok(
        "graph", *xen, "--exclude-class", "argo"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("graph",),
        ("graph", "--policy", BANKS, "--system", SYSTEM),
        ("graph", "--policy", BANKS, "--configured"),
        ("graph", "--policy", BANKS, "--relabels"),
        ("graph", "--system", SYSTEM, "--configured", "--operators"),
        ("graph", "--system", SYSTEM, "--min-weight", "5"),
        ("graph", "--policy", BANKS, "--refused"),
        ("graph", "--policy", BANKS, "--min-weight", "11"),
        ("graph", "--policy", BANKS, "--svg", ""),
        ("graph", "--system", SYSTEM, "--context", "*:*:*"),
        ("graph", "--policy", BANKS, "--context", "*:*:*", "--any-booleans"),
        ("reach", "--policy", BANKS),
        ("reach", "--policy", BANKS, "--from", "bank-a", "--to", "bank-b"),
        ("paths", "--policy", BANKS, "--from", "bank-a"),
        ("paths", "--policy", BANKS, "--from", "bank-a", "--to", "bank-b", "--all-shortest",
         "--max-length", "2"),
        ("prove", "--policy", BANKS),
        ("map",),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_wrong_usage(words: tuple[str, ...]) -> None:
    """Exit code 2 and the usage, before anything is read."""
    result = run(*words)
    assert result.exit_code == 2
    assert "Error" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("reach", "--policy", BANKS, "--from", "nobody"),
        ("paths", "--policy", BANKS, "--from", "bank-a", "--to", "bank-a"),
        ("reach", "--policy", BANKS, "--from", "bank-a", "--avoid", "bank-a"),
        ("reach", "--policy", BANKS, "--from", "bank-a", "--exclude", "bank-a"),
        ("graph", "--policy", BANKS, "--exclude", "no*"),
        ("graph", "--policy", BANKS, "--exclude", ","),
        ("reach", "--policy", BANKS, "--from", ""),
        ("cut", "--policy", BANKS, "--from", "bank-a", "--to", ","),
        ("graph", "--policy", "/nonexistent"),
        ("graph", "--policy", "dummy"),
        ("graph", "--policy", str(EXAMPLES / "two-banks/README.md")),
        ("graph", "--policy", BANKS, "--map", "/nonexistent"),
        ("prove", "--policy", BANKS, "--claims", "/nonexistent"),
        ("verify", "--policy", BANKS, "/nonexistent"),
    ],
)
def test_a_wrong_name_or_file_is_an_input_error(words: tuple[str, ...]) -> None:
    """Exit code 2 with one line that says what is wrong."""
    result = run(*words)
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2
    assert "\n" not in str(result.exception.problems[0])
