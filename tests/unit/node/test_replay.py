"""Records asked again under the policy that decided them: every answer is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from skerry.audit.record import Record
from skerry.node.replay import Replay
from skerry.policy.source import Source, make_policy

POLICY = """
[policy]
name = "p"
version = "1.0"
bootstrap = "op"
[simple-type-enforcement]
types = ["red", "blue"]
[labels.op]
ste = ["red", "blue"]
[labels.red]
ste = ["red"]
[labels.blue]
ste = ["blue"]
[resources.reds]
ste = "red"
"""
OWN = "core.policy-manager"
STARTED = {"operator": OWN, "domain": OWN}


def record(hook: str, parties: Mapping[str, str], domain: str = "") -> dict[str, object]:
    """Return what a decision's record holds."""
    return {"hook": hook, "parties": dict(parties), **({"domain": domain} if domain else {})}


def replayed(*records: Mapping[str, object]) -> list[tuple[str, bool]]:
    """Return the code and the answer to each record, all of which were allowed."""
    replay = Replay(make_policy([Source("p.toml", POLICY.encode())]).stack)

    async def ask() -> list[tuple[str, bool]]:
        found = []
        for number, fields in enumerate(records, 1):
            answer = await replay.ask(Record(number, "", 0, "", "allow", dict(fields), ""))
            assert answer is not None
            found.append((answer.code, answer.after))
        return found

    return asyncio.run(ask())


@pytest.mark.parametrize("hook", ["console_read", "console_both"])
def test_a_console_with_a_label_of_its_own_is_asked_as_the_resource_that_it_is(hook: str) -> None:
    """Its label is none for domains. The control: a domain of another label may not write it."""
    parties = {"operator": "op", "domain": "red", "console": "resource:reds"}
    asked = record(hook, parties), record(hook, {**parties, "domain": "blue"})
    (one, other) = replayed(*asked)
    assert one == ("STE-SHARED-TYPE", True)
    assert other == ("STE-NO-SHARED-TYPE", False)


def test_the_nodes_own_domains_start_as_themselves() -> None:
    """By the rule that no policy has; they run beside others, which start as before. The control:
    an operator does not start one."""
    answers = replayed(
        record("domain_create", STARTED, "policy-manager"),
        record("domain_unpause", STARTED),
        record("domain_create", {"operator": "op", "domain": "red"}, "a"),
        record("domain_create", {"operator": "op", "domain": OWN}, "policy-manager"),
    )
    assert answers[:2] == [("BOOTSTRAP", True)] * 2
    assert [allowed for _, allowed in answers[2:]] == [True, False]
