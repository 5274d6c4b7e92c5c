"""What `up` proves is what then runs: also where a domain keeps the label that it had."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import StateError
from skerry.node.assertions import violations
from skerry.wire import control as wire
from skerry.xsm.explain import Refused
from tests.support.reconciling import up
from tests.unit.control.test_calls import Client, Host, play

POLICY = """
[policy]
name = "kept"
version = "1.0"
bootstrap = "sys"
[simple-type-enforcement]
types = ["s", "secret", "pub"]
[labels.sys]
ste = ["s", "secret"]
[labels.secret]
ste = ["secret"]
[labels.mixed]
ste = ["secret", "pub"]
[labels.pub]
ste = ["pub"]
"""
OPEN = POLICY.replace('ste = ["s", "secret"]', 'ste = ["s", "secret", "pub"]')
"""The operator may start and relabel what is public, too."""

NOW = """
name = "kept"
policy = "policy.toml"
[domains.clerk]
label = "mixed"
machine = "simulator"
[domains.vault]
label = "secret"
machine = "simulator"
"""
NEVER = '[[assert]]\nnever = "vault -> clerk"\n'
RELABELLED = NOW.replace('"mixed"', '"pub"')
RESTARTED = RELABELLED.replace("[domains.clerk]", '[domains.clerk]\nmemory = "256M"')
TEXT = r"never vault -> clerk does not hold: vault -> clerk; clerk keeps the label mixed"


@pytest.mark.parametrize("wanted", [RELABELLED, RESTARTED])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_file_that_holds_only_under_a_refused_label_is_refused_whole(
    wanted: str, dry_run: bool, tmp_path: Path
) -> None:
    """Nothing is touched. The control: without the assertion the rest of the file is done."""

    async def scene(host: Host) -> None:
        await host.up()
        setup, domain = host.node.setup, host.monitor.domain("clerk")
        more = '[domains.more]\nlabel = "secret"\nmachine = "simulator"\n'
        with pytest.raises(Refused, match=TEXT):
            await up(host, wanted + more + NEVER, POLICY, dry_run=dry_run)
        assert host.node.setup is setup
        assert host.monitor.domain("clerk") is domain
        assert "more" not in host.monitor.domains
        result = await up(host, wanted + more, POLICY)
        assert len(result.refused) == 1
        assert "more" in host.monitor.domains

    play(tmp_path, scene, OPEN, NOW)


@pytest.mark.parametrize("wanted", [RELABELLED, RESTARTED])
def test_a_file_whose_labels_all_come_into_force_is_asked_of_those_alone(
    wanted: str, tmp_path: Path
) -> None:
    """What is relabelled or started anew has not got its old label any more."""

    async def scene(host: Host) -> None:
        await host.up()
        assert (await up(host, wanted + NEVER, OPEN)).refused == []
        assert str(host.monitor.domain("clerk").label) == "pub"
        assert violations(host.node.setup) == []

    play(tmp_path, scene, OPEN, NOW)


def test_what_keeps_its_label_is_proven_under_the_label_that_it_has(tmp_path: Path) -> None:
    """The file before defines another one than what an operator gave since."""

    async def scene(host: Host) -> None:
        await host.up()
        await host.handle(wire.Relabel("clerk", "mixed"), Client("sys"))
        wanted = RESTARTED.replace('"pub"', '"none"') + NEVER
        with pytest.raises(Refused, match=TEXT):
            await up(host, wanted, OPEN + "[labels.none]\nste = []\n")

    play(tmp_path, scene, OPEN, RELABELLED)


def test_a_label_that_is_kept_is_called_as_the_new_policy_calls_it(tmp_path: Path) -> None:
    """The setup never holds a name of the policy before."""

    async def scene(host: Host) -> None:
        await host.up()
        renamed = POLICY.replace("[labels.mixed]", '[labels.hidden]\nfrom = "mixed"')
        result = await up(host, RESTARTED, renamed)
        assert result.refused == ["restart clerk"]
        assert str(host.node.setup.labels["clerk"]) == "hidden"
        assert host.monitor.domain("clerk").label == host.node.setup.labels["clerk"]

    play(tmp_path, scene, OPEN, NOW)


def test_a_refusal_that_no_plan_foresaw_is_reported_with_what_no_longer_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relabel that fails after it was planned as allowed. The control: it does not fail."""

    async def fail(*_: object) -> None:
        raise StateError("it just ended")

    async def scene(host: Host) -> None:
        await host.up()
        with monkeypatch.context() as patched:
            patched.setattr(host.node, "relabel_to", fail)
            result = await up(host, RELABELLED + NEVER, OPEN)
        assert result.refused == ["relabel clerk", "what is asserted"]
        assert TEXT in result.answer["refused"][1]["text"]
        assert (await up(host, RELABELLED + NEVER, OPEN)).refused == []

    play(tmp_path, scene, OPEN, NOW)
