"""What a system file asserts may name what a claim may: domains, resources, labels, patterns."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.flow.claim import parse_claim, resolve
from skerry.node.assertions import claims_of, load_proven, violations
from skerry.node.flows import SystemFlows
from skerry.node.setup import Setup, load_setup

POLICY = """
[policy]
name = "live"
version = "1.0"
bootstrap = "op"
[simple-type-enforcement]
types = ["high", "low", "own"]
[labels.op]
ste = ["high", "low", "own"]
[labels.hi]
ste = ["high"]
[labels.lo]
ste = ["low"]
[labels.both]
ste = ["high", "low"]
[labels.nobody]
ste = ["own"]
"""

SYSTEM = """
name = "live"
policy = "policy.toml"
[domains.vault]
label = "hi"
[domains.vault2]
label = "hi"
[domains.web]
label = "lo"
[domains.guard]
label = "both"
"""


def written(folder: Path, never: str, except_: str = "") -> Path:
    """Write the system with one assertion, in the lines 12 to 14."""
    (folder / "policy.toml").write_text(POLICY)
    asserted = f'[[assert]]\nnever = "{never}"\n' + (f"except = [{except_}]\n" if except_ else "")
    path = folder / "system.toml"
    path.write_text(SYSTEM + asserted)
    return path


def setup_of(folder: Path, never: str, except_: str = "") -> Setup:
    """Load it without a proof."""
    return load_setup(written(folder, never, except_))


@pytest.mark.parametrize(
    ("never", "claim"),
    [
        ("hi -> lo", "hi -/-> lo"),
        ("va* -> w*", "va* -/-> w*"),
        ("vault,vault2 -> web", "vault,vault2 -/-> web"),
        ("vault , hi->web", "vault,hi -/-> web"),
        ("vault2 -> lo,web", "vault2 -/-> lo,web"),
    ],
)
def test_a_side_names_what_a_claim_may_name(never: str, claim: str, tmp_path: Path) -> None:
    """It is the same sets of domains, and holds only but for the guard, by whatever name."""
    setup = setup_of(tmp_path, never)
    graph = SystemFlows(setup).graph()
    (made,) = claims_of(setup)
    assert resolve(made, graph) == resolve(parse_claim(claim), graph)
    (broken,) = violations(setup)
    assert broken.path[1:] == ("guard", "web")
    assert (broken.file, broken.line) == (str(tmp_path / "system.toml"), 13)
    for trusted in ('"guard"', '"both"', '"gu*"', '"guard, both"'):
        assert violations(setup_of(tmp_path, never, trusted)) == []


@pytest.mark.parametrize(
    ("never", "trusted", "words"),
    [
        ("x -> web", "", "there is no label 'x'"),
        ("valt -> web", "", "did you mean vault"),
        ("vault,x -> web", "", "there is no label 'x'"),
        ("x* -> web", "", "no label matches 'x*'"),
        ("nobody -> web", "", "there is no label 'nobody'"),
        ("hi -> vault2", "", "vault2 stands on both sides"),
        ("hi -> web", '"vault"', "vault is a source and trusted"),
        ("vault -> web", '"lo"', "web is a sink and trusted"),
        ("vault -> web", '"x"', "there is no label 'x'"),
        ("vault -> ,", "", 'never must be "A -> B"'),
        ("vault, web", "", 'never must be "A -> B"'),
    ],
)
def test_a_side_that_names_nothing_is_an_error_at_its_line(
    never: str, trusted: str, words: str, tmp_path: Path
) -> None:
    """A wrong file (exit 2), and never a truth: also a label that no domain has."""
    with pytest.raises(InputError) as caught:
        load_proven(written(tmp_path, never, trusted))
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(tmp_path / "system.toml"), 13)
    assert words in problem.message
