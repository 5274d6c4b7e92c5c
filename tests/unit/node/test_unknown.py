"""A policy that allows what it does not know: no rule says so, and so rules prove nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from skerry.cli.flow import flow
from skerry.errors import InputError
from skerry.flow.policy import Options
from skerry.node.asking import PlainAsker
from skerry.node.assertions import AnalysisFailed, policy_violations, require_rules
from skerry.policy.asserted import assertions_of
from skerry.policy.fitness import needed
from skerry.policy.source import Policy, Source, make_policy
from tests.support.policies import compile_conf
from tests.unit.flow.sample import compiled

KNOWN = {name: sorted(permissions) for name, permissions in needed().items()}
PARTLY = {**KNOWN, "grant": ["map_read"]}
NEVER = '[[assert]]\nnever = "a_t -> b_t"\n'
CLAIM = "a_t -/-> b_t"


def compile_with(
    folder: Path, classes: dict[str, list[str]], unknown: str, name: str = "made"
) -> Path:
    """Compile a policy with these classes, under which a and b only read d."""
    lines = [f"class {name}" for name in classes] + ["sid kernel", "sid security"]
    lines += [f"class {name} {{ {' '.join(held)} }}" for name, held in classes.items()]
    lines += ["type a_t; type b_t; type d_t; role r; role r types { a_t b_t d_t };"]
    lines += ["allow { a_t b_t } d_t:grant { map_read };", "user u roles r;"]
    lines += ["sid kernel u:r:a_t", "sid security u:r:a_t", ""]
    return compile_conf("\n".join(lines), folder / name, "selinux", 33, "-U", unknown)


def asserting(path: Path, beside: str = NEVER) -> Policy:
    """Read a policy with assertions."""
    written = assertions_of(b"", beside.encode(), "p")
    return make_policy([Source("p", path.read_bytes(), assertions=written)])


@pytest.mark.parametrize("lost", ["resource", "map_write"])
def test_what_no_rule_grants_and_everybody_has_is_not_proven_away(
    lost: str, tmp_path: Path
) -> None:
    """A class, or one permission, that the policy lacks; the controls: denied, or known."""
    held = {**KNOWN, "grant": [name for name in KNOWN["grant"] if name != lost]}
    less = {name: names for name, names in held.items() if name != lost}
    policy = asserting(compile_with(tmp_path, less, "allow"))
    with pytest.raises(AnalysisFailed, match=f"no rule says so.*{lost}"):
        policy_violations(policy)
    assert policy_violations(asserting(compile_with(tmp_path, less, "deny"))) == []
    assert policy_violations(asserting(compile_with(tmp_path, KNOWN, "allow"))) == []


def test_the_monitor_lets_pass_what_the_rules_do_not_show(tmp_path: Path) -> None:
    """The flow that would be proven away: a writes to d, and b reads it."""
    less = {name: held for name, held in PARTLY.items() if name != "resource"}
    stack = make_policy([Source("p", compile_with(tmp_path, less, "allow").read_bytes())]).stack
    a, b, d = (stack.label(f"u:r:{name}_t", "domain") for name in "abd")
    assert PlainAsker(stack).allowed("resource_both", a, d)
    assert PlainAsker(stack).allowed("resource_read", b, d)


def test_only_what_counts_as_a_flow_matters(tmp_path: Path) -> None:
    """Below the least weight asked for, and of a class that is left out, it changes nothing."""
    path = compile_with(tmp_path, PARTLY, "allow")
    stack = make_policy([Source("p", path.read_bytes())]).stack
    with pytest.raises(InputError, match="map_write"):
        require_rules(stack, Options())
    require_rules(stack, Options(exclude_classes=("grant",)))
    small = {**KNOWN, "domain": [name for name in KNOWN["domain"] if name != "pause"]}
    stack = make_policy([Source("p", compile_with(tmp_path, small, "allow").read_bytes())]).stack
    require_rules(stack, Options(min_weight=4))
    with pytest.raises(InputError, match="pause"):
        require_rules(stack, Options(min_weight=3))


def test_a_policy_that_is_none_for_domains_is_asked_for_its_rules(tmp_path: Path) -> None:
    """No node takes it; as Debian's policy for SELinux, which allows what it does not know."""
    made = compile_conf(
        Path(f"{compiled(1, tmp_path)}.conf").read_text(), tmp_path / "p", "selinux", 33, "-U",
        "allow",
    )  # fmt: skip
    require_rules(make_policy([Source("p", made.read_bytes())]).stack, Options())


@pytest.mark.parametrize("command", [["prove", CLAIM], ["reach", "--from", "a_t"]])
def test_the_commands_say_so_and_leave_it_out_only_on_request(
    command: list[str], tmp_path: Path
) -> None:
    """It is wrong usage, and with --skip-unknown an answer."""
    path = compile_with(tmp_path, PARTLY, "allow")
    words = [command[0], "--policy", str(path), *command[1:]]
    done = CliRunner().invoke(flow, words)
    assert isinstance(done.exception, InputError)
    assert "no rule says so: grant { map_write }" in str(done.exception)
    assert CliRunner().invoke(flow, [*words, "--skip-unknown"]).exit_code == 0
