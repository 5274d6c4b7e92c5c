"""Extended permissions are read as the policy's own decompiler reads them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.model import XALLOW, XAUDITALLOW, XDONTAUDIT, FlaskPolicy
from tests.oracle.generate import compiled, draw

WORDS = {"allowxperm": XALLOW, "auditallowxperm": XAUDITALLOW, "dontauditxperm": XDONTAUDIT}
RULE = re.compile(r"^(\w+xperm) (\w+) (\w+):(\w+) ioctl \{ (.*) \};$", re.MULTILINE)

Rules = dict[tuple[int, str, str, str], set[int]]


def ours(policy: FlaskPolicy) -> Rules:
    """Return the numbers of each rule as we read them."""
    found: Rules = {}
    for rule in policy.extended:
        one, two = policy.type_name(rule.source), policy.type_name(rule.target)
        key = (rule.kind, one, two, policy.classes[rule.tclass].name)
        members = [n for n in range(256) if rule.numbers >> n & 1]
        if rule.form == 1:
            numbers = {rule.driver << 8 | low for low in members}
        else:
            numbers = {high << 8 | low for high in members for low in range(256)}
        found.setdefault(key, set()).update(numbers)
    return found


def theirs(path: Path, mls: bool) -> Rules:
    """Return what `checkpolicy` writes of a compiled policy."""
    text = path.with_suffix(".text")
    flags = ["-M"] if mls else []
    subprocess.run(
        ["checkpolicy", "-b", "-F", *flags, "-o", text, path], check=True, capture_output=True
    )
    found: Rules = {}
    for word, one, two, tclass, listed in RULE.findall(text.read_text()):
        other = one if two == "self" else two
        numbers = found.setdefault((WORDS[word], one, other, tclass), set())
        for item in listed.split():
            low, _, high = item.partition("-")
            numbers.update(range(int(low, 16), int(high or low, 16) + 1))
    return found


def test_extended_rules_are_what_the_decompiler_writes(tmp_path: Path) -> None:
    """All rules of random policies, number by number."""
    compared = 0
    for seed in range(60):
        made = draw(seed, "selinux", "conf")
        if not made.extended:
            continue
        path = compiled(seed, "selinux", "conf", tmp_path)
        policy = read_policydb(path.read_bytes(), path.name)
        expected = theirs(path, policy.mls)
        assert ours(policy) == expected, seed
        compared += len(expected)
    assert compared > 20
