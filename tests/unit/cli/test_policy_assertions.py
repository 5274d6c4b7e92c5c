"""`policy check`, `show` and `convert`, and `check`: what is said of a policy's assertions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from skerry.cli.policy import policy
from skerry.cli.system import check
from skerry.errors import PolicyError
from skerry.policy.source import read_policy
from skerry.xsm.explain import Refused
from tests.support import policies
from tests.support.simulated import POLICY, write_system

HOLDS = '[[assert]]\nnever = "clerk -> broker"\nexcept = ["red", "system"]\n'
BROKEN = '[[assert]]\nnever = "clerk -> broker"\n'


def run(*words: str) -> Result:
    """Run a command of `skerry policy`."""
    return CliRunner().invoke(policy, words)


def test_a_policys_assertions_are_proven_by_check(tmp_path: Path) -> None:
    """In XML's stead a file beside it; how many hold is said, and with none nothing is."""
    toml = tmp_path / "p.toml"
    toml.write_text(POLICY)
    assert "proven" not in run("check", str(toml)).stdout
    toml.write_text(POLICY + HOLDS)
    xml = tmp_path / "p.xml"
    converted = run("convert", "--to", "xml", str(toml))
    xml.write_text(converted.stdout)
    Path(f"{xml}.assert").write_text(HOLDS)
    xen = tmp_path / "xen"
    xen.write_bytes(policies.xen().read_bytes())
    Path(f"{xen}.assert").write_text(
        'exclude-classes = ["argo"]\n[[assert]]\nnever = "domU_t -> isolated_domU_t"\n'
        'except = ["dom0_t", "xen_t", "xenstore_t"]\n'
    )
    for path in (toml, xml, xen):
        result = run("check", str(path))
        assert ", 1 assertion proven, " in result.stdout, result.exception
        assert json.loads(run("check", str(path), "--json").stdout)["assertions"] == 1


def test_a_broken_assertion_is_refused_with_the_path_and_the_rules(tmp_path: Path) -> None:
    """Exit code 3, and each flow of the chain with what allows it."""
    path = tmp_path / "p.toml"
    path.write_text(POLICY + BROKEN)
    result = run("check", str(path))
    assert isinstance(result.exception, Refused)
    assert result.exception.exit_code == 3
    text = result.exception.explanation.text()
    assert "clerk -> red -> broker" in text or "clerk -> system -> broker" in text
    assert text.count("FLOW-POSSIBLE") == 2
    assert "p.toml:" in text


def test_an_assertion_may_be_of_whole_contexts(tmp_path: Path) -> None:
    """Over types it is broken, over the contexts of one user it holds; a context that there is not
    is refused."""
    xen = tmp_path / "xen"
    xen.write_bytes(policies.xen().read_bytes())
    asserted = 'exclude-classes = ["argo"]\n[[assert]]\nnever = "prot_domU_t -> isolated_domU_t"\n'
    Path(f"{xen}.assert").write_text(asserted)
    assert isinstance(run("check", str(xen)).exception, Refused)
    Path(f"{xen}.assert").write_text('contexts = ["user_1:vm_r:*domU_t"]\n' + asserted)
    assert "1 assertion proven" in run("check", str(xen)).stdout
    Path(f"{xen}.assert").write_text('contexts = ["user_1:*:*",\n"nobody:*:*"]\n' + asserted)
    result = run("check", str(xen))
    assert "xen.assert:2: no context of the policy matches 'nobody:*:*'" in str(result.exception)


def test_a_class_that_there_is_no_map_for_is_a_refusal(tmp_path: Path) -> None:
    """What can't be told is not taken to hold; a class that is not there is an error."""
    xen = tmp_path / "xen"
    xen.write_bytes(policies.xen().read_bytes())
    classes = 'exclude-classes = [\n  "argo",\n  "nothing", "nowhere",\n]\n'
    Path(f"{xen}.assert").write_text(classes + BROKEN)
    result = run("check", str(xen))
    for name in ("nothing", "nowhere"):
        assert f"xen.assert:3: the policy has no class '{name}'" in str(result.exception)
    assert "argo" not in str(result.exception)
    assert getattr(result.exception, "exit_code", 0) == 3


def test_a_wrong_assertion_is_the_files_fault(tmp_path: Path) -> None:
    """Exit code 2 with file and line; all of them at once."""
    path = tmp_path / "p.toml"
    path.write_text(POLICY)
    Path(f"{path}.assert").write_text(HOLDS.replace("clerk", "clark") * 2)
    result = run("check", str(path))
    assert isinstance(result.exception, PolicyError)
    assert [problem.line for problem in result.exception.problems] == [2, 5]
    assert "did you mean clerk" in str(result.exception)


def test_show_lists_assertions_and_convert_loses_none(tmp_path: Path) -> None:
    """To TOML they go along; XML can't hold them, so they are handed over on the error output."""
    path, other = tmp_path / "p.toml", tmp_path / "q.toml"
    path.write_text(POLICY + HOLDS)
    assert "never clerk -> broker except red, system" in run("show", "--policy", str(path)).stdout
    other.write_text(run("convert", "--to", "toml", str(path)).stdout)
    both = [read_policy([one]).sources[0].assertions for one in (path, other)]
    assert both[0] and both[1]
    assert both[0].meaning() == both[1].meaning()
    xml = run("convert", "--to", "xml", str(path))
    assert "assert" not in xml.stdout
    assert 'never = "clerk -> broker"' in xml.stderr
    path.write_text(POLICY)
    assert run("convert", "--to", "xml", str(path)).stderr == ""


@pytest.mark.parametrize(("asserted", "holds"), [(HOLDS, True), (BROKEN, False)])
def test_a_system_is_checked_with_what_its_policy_asserts(
    asserted: str, holds: bool, tmp_path: Path
) -> None:
    """Counted beside its own; what does not hold is refused at its line in the policy's file."""
    path = write_system(tmp_path)
    (tmp_path / "policy.toml.assert").write_text(asserted)
    result = CliRunner().invoke(check, [path])
    if holds:
        assert "2 assertions proven" in result.stdout
        return
    assert isinstance(result.exception, Refused)
    explanation = result.exception.explanation
    assert (explanation.file, explanation.line) == (str(tmp_path / "policy.toml.assert"), 2)
