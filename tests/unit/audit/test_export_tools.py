"""Debian's own tools read what `audit export` writes of real decisions under a real policy."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from skerry.audit.writer import AuditTrail
from skerry.cli.audit import audit
from skerry.errors import Denied
from skerry.label import Label
from skerry.monitor.mediate import Mediator
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.stack import Stack
from tests.oracle.sepol import palatable
from tests.support.selinux_tools import run_tool

SOURCE = Path(__file__).parents[1] / "policydb/data/xen.conf"

MARKS = """
type plain_t, domain_type;
type trial_t, domain_type;
role vm_r types { plain_t trial_t };
permissive trial_t;
type_transition { plain_t trial_t } domain_type:event guest_channel;
auditallow dom0_t domain_type:domain pause;
dontaudit guest_t dom0_t:grant map_write;
"""

DOM0 = "system_u:system_r:dom0_t"
GUEST = "user_1:vm_r:guest_t"
OTHER = "user_2:vm_r:guest_t"
PLAIN = "user_1:vm_r:plain_t"
TRIAL = "user_1:vm_r:trial_t"


def compiled(folder: Path, more: str = MARKS) -> Path:
    """Compile the small Xen policy with more rules; Debian's checkpolicy does it."""
    source = folder / "policy.conf"
    before, users, after = SOURCE.read_text().partition("user system_u")
    source.write_text(before + more + users + after)
    made = folder / "policy.30"
    run_tool("checkpolicy", "-t", "Xen", "-c", "30", "-o", str(made), str(source))
    return made


def label(context: str) -> Label:
    """Return a label with Flask's part alone."""
    return Label((("flask", context),))


def decide(
    policy: Path, trail_file: Path, *asked: tuple[str, Mapping[str, str], Mapping[str, object]]
) -> list[bool]:
    """Ask hooks of a policy, as the monitor does, and return what was allowed."""
    module = FlaskModule(read_policydb(policy.read_bytes(), policy.name))

    async def main() -> list[bool]:
        trail = AuditTrail.open(trail_file)
        mediator = Mediator(PolicyManager(Stack([module]), MemoryHistory()), trail)
        answers = []
        for hook, sides, about in asked:
            parties = {role: label(context) for role, context in sides.items()}
            try:
                await mediator.permit(hook, lambda parties=parties: parties, about)  # type: ignore[misc]
                answers.append(True)
            except Denied:
                answers.append(False)
        await asyncio.to_thread(trail.close)
        return answers

    return asyncio.run(main())


def channel(source: str, sink: str) -> tuple[str, Mapping[str, str], Mapping[str, object]]:
    """Return the question for a stream between two domains."""
    names = {"source": "bank-a", "sink": "bank-b", "port": "orders", "channel": 1}
    return "channel_two_way", {"source": source, "sink": sink}, names


def export(trail: Path, folder: Path, *words: str) -> Path:
    """Export a trail as a user does, into a file."""
    done = CliRunner().invoke(audit, ["export", "--file", str(trail), *words])
    assert done.exit_code == 0, (done.output, done.exception)
    made = folder / "exported.log"
    made.write_text(done.stdout)
    return made


def explained(tool: str, policy: Path, log: Path) -> str:
    """Return what a tool that looks into the policy says of a log."""
    readable = log.with_name("readable.30")
    readable.write_bytes(palatable(policy))
    return run_tool(tool, "-p", str(readable), "-i", str(log))


def proposed(policy: Path, log: Path) -> list[str]:
    """Return the rules that audit2allow proposes, without its comments."""
    said = explained("audit2allow", policy, log)
    return [line for line in said.splitlines() if line.startswith("allow ")]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiled policy."""
    return compiled(tmp_path_factory.mktemp("policy"))


STYLES = pytest.mark.parametrize("style", [(), ("--style", "xen")], ids=["user_avc", "xen"])


@STYLES
def test_audit2allow_proposes_exactly_the_missing_rules(
    style: tuple[str, ...], policy: Path, tmp_path: Path
) -> None:
    """What it proposes is what was refused, and with these rules the same question is allowed."""
    trail = tmp_path / "audit.log"
    assert decide(policy, trail, channel(GUEST, PLAIN), channel(GUEST, GUEST)) == [False, True]
    rules = proposed(policy, export(trail, tmp_path, *style))
    assert sorted(rules) == [
        "allow guest_t plain_t:grant { map_read map_write };",
        "allow plain_t guest_t:grant { map_read map_write };",
    ]
    mended = compiled(tmp_path, MARKS + "\n".join(rules) + "\n")
    assert decide(mended, tmp_path / "second.log", channel(GUEST, PLAIN)) == [True]


@STYLES
def test_a_violated_constraint_is_named(
    style: tuple[str, ...], policy: Path, tmp_path: Path
) -> None:
    """With the policy at hand audit2allow proposes no rule where a constraint stands against it."""
    trail = tmp_path / "audit.log"
    assert decide(policy, trail, channel(GUEST, OTHER)) == [False]
    log = export(trail, tmp_path, *style)
    said = explained("audit2allow", policy, log)
    assert "constrain grant { map_read map_write } ((u1 == u2 -Fail-)" in said
    assert "source user (user_1) and target user (user_2) are different" in said
    assert "missing" not in said.lower()


def test_what_the_policy_hides_is_not_exported_and_what_it_marks_is(
    policy: Path, tmp_path: Path
) -> None:
    """The part that is dontaudited is missing, a grant with auditallow is there as granted."""
    trail = tmp_path / "audit.log"
    pause = "domain_pause", {"operator": DOM0, "domain": GUEST}, {"domain": "bank-a"}
    destroy = "domain_destroy", {"operator": DOM0, "domain": GUEST}, {"domain": "bank-a"}
    assert decide(policy, trail, channel(GUEST, DOM0), pause, destroy) == [False, True, True]
    log = export(trail, tmp_path)
    assert proposed(policy, log) == ["allow guest_t dom0_t:grant map_read;"]
    found = re.findall(r"avc:  (\w+)  { (.*?) }", log.read_text())
    assert found == [("denied", "map_read"), ("granted", "pause")]


def test_ausearch_finds_every_record_by_type_context_and_time(policy: Path, tmp_path: Path) -> None:
    """Each line is one record to it, with the object's context, and none is called broken."""
    trail = tmp_path / "audit.log"
    decide(policy, trail, channel(GUEST, PLAIN), channel(GUEST, OTHER), channel(GUEST, TRIAL))
    log = export(trail, tmp_path)
    lines = log.read_text().splitlines()

    def found(*words: str) -> list[str]:
        done = run_tool("ausearch", "-if", str(log), "--raw", *words)
        return [line.rstrip() for line in done.splitlines()]

    assert len(lines) == 6
    assert found("-m", "USER_AVC") == lines
    assert found("-o", PLAIN) == [line for line in lines if f"tcontext={PLAIN}" in line]
    assert found("-ts", "01/01/26") == lines
    assert found("-a", "2") == [line for line in lines if ":2): pid" in line]
    readable = run_tool("ausearch", "-if", str(log), "-i", "-a", "3")
    assert "denied  { map_read map_write } for  op=channel_two_way" in readable
    assert "uid=unset auid=unset ses=unset" in readable


def test_audit2why_says_why_of_each_record(policy: Path, tmp_path: Path) -> None:
    """A missing rule is a missing rule, a constraint a constraint, as the explanation said."""
    trail = tmp_path / "audit.log"
    decide(policy, trail, channel(GUEST, PLAIN), channel(GUEST, OTHER))
    log = export(trail, tmp_path)
    why = explained("audit2why", policy, log)
    reasons = why.split("type=USER_AVC")[1:]
    assert ["Missing type enforcement (TE) allow rule" in reason for reason in reasons] == [
        True,
        True,
        False,
        False,
    ]
    assert ["Constraint rule" in reason for reason in reasons] == [False, False, True, True]


def test_a_permissive_refusal_is_recorded_once_a_generation(policy: Path, tmp_path: Path) -> None:
    """The second channel of a permissive domain adds no refusal of its own to the log."""
    trail = tmp_path / "audit.log"
    # No rule lets trial_t share with itself, and it is the only source, so nothing is refused.
    assert decide(policy, trail, channel(TRIAL, TRIAL), channel(TRIAL, TRIAL)) == [True, True]
    log = export(trail, tmp_path)
    lines = log.read_text().splitlines()
    assert len(lines) == 1
    assert "{ map_read map_write }" in lines[0]
    assert "permissive=1" in lines[0]
    assert proposed(policy, log) == ["allow trial_t self:grant { map_read map_write };"]


@pytest.mark.parametrize("name", ["x' type=USER_AVC", 'a"b', "a\nb", "caf\u00e9", "x" * 5000])
def test_no_name_forges_a_line_for_the_tools(name: str, policy: Path, tmp_path: Path) -> None:
    """Whatever the port is called, they see the same vectors as with an honest name."""
    hook, sides, about = channel(GUEST, PLAIN)
    trail = tmp_path / "audit.log"
    decide(policy, trail, (hook, sides, {**about, "port": name, "source": name}))
    log = export(trail, tmp_path)
    assert len(proposed(policy, log)) == 2
    raw = run_tool("ausearch", "-if", str(log), "--raw", "-m", "USER_AVC")
    assert len(raw.splitlines()) == 2
    shown = run_tool("ausearch", "-if", str(log), "-i", "-m", "USER_AVC")
    assert shown.count("type=USER_AVC msg=") == 2
