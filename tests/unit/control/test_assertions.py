"""What a policy asserts, on a running node: refused before the generation is raised, on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from skerry.control.failure import failed
from skerry.errors import PolicyError
from skerry.node import assertions
from skerry.node.assertions import AnalysisFailed
from skerry.policy.asserted import SUFFIX
from skerry.wire import control as wire
from skerry.xsm.explain import Refused
from tests.unit.control.test_calls import POLICY, SYSTEM, Client, Host, play

APART = POLICY.replace('ste = ["blue", "all"]', 'ste = ["blue"]')
WIDER = APART.replace('[labels.blue]\nste = ["blue"]', '[labels.blue]\nste = ["red"]')
NEVER = '[[assert]]\nnever = "red -> blue"\nexcept = ["op"]\n'


async def load(host: Host, text: str, beside: str = "", **options: Any) -> dict[str, Any]:
    """Load a policy as the command does, with what stands beside it."""
    client = Client("op")
    client.type(text.encode())
    client.type(b"")
    call = wire.PolicyLoad("next.toml", assertions=beside.encode(), **options)
    return cast(dict[str, Any], await host.handle(wire.decode_call(wire.encode(call)), client))


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_load_that_breaks_what_it_asserts_is_refused_before_it_is_in_force(
    inside: bool, dry_run: bool, tmp_path: Path
) -> None:
    """The same generation, the same channel, a record with the path; the control loads."""

    async def scene(host: Host) -> None:
        await host.up()
        live = len(host.monitor.channels)
        asserted = (WIDER + NEVER, "") if inside else (WIDER, NEVER)
        with pytest.raises(Refused) as caught:
            await load(host, *asserted, dry_run=dry_run)
        reply = failed(caught.value)
        assert (reply.exit_code, reply.code) == (3, "ASSERTION-BROKEN")
        assert "red -> blue: label red" in reply.text
        assert "share the type red" in reply.text
        assert "try:" in reply.text
        assert host.monitor.mediator.decider.generation == 1
        assert len(host.monitor.channels) == live
        record = host.audit.events("deny")[-1]
        assert record["hook"] == "policy_load"
        assert "red -> blue" in str(record["why"])
        done = await load(host, WIDER, dry_run=dry_run)
        assert done["assertions"] == 0
        assert done["generation"] == 2

    play(tmp_path, scene, APART)


def test_a_policy_in_force_passes_its_assertions_on(tmp_path: Path) -> None:
    """A load without any must hold them; `policy show` lists them; `assert = []` ends them."""

    async def scene(host: Host) -> None:
        await host.up()
        assert (await load(host, APART, NEVER))["assertions"] == 1
        with pytest.raises(Refused, match="red -> blue"):
            await load(host, WIDER)
        shown = cast(dict[str, Any], await host.handle(wire.PolicyShow(), Client("op")))
        assert shown["modules"][0]["assertions"] == ["never red -> blue except op"]
        assert (await load(host, APART))["assertions"] == 1
        ended = await load(host, WIDER, "assert = []")
        assert ended["assertions"] == 0
        assert "asserted no more: never red -> blue except op" in ended["warnings"]
        said = [fields.get("ended_assertions") for _, fields in host.audit.records]
        assert ["never red -> blue except op"] in said

    play(tmp_path, scene, APART)


def test_an_assertion_that_says_nothing_is_refused_with_its_line(tmp_path: Path) -> None:
    """It is the file that is wrong: file, line and exit code 2."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(PolicyError) as caught:
            await load(host, APART, NEVER.replace("blue", "nobody"))
        reply = failed(caught.value)
        assert reply.exit_code == 2
        assert f"next.toml{SUFFIX}:2: there is no label 'nobody'" in reply.message
        assert host.monitor.mediator.decider.generation == 1

    play(tmp_path, scene, APART)


def test_an_analysis_that_fails_does_not_keep_an_eviction_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy without red ends both domains, whatever becomes of the proof; a wider one is
    refused, on record."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    async def scene(host: Host) -> None:
        await host.up()
        monkeypatch.setattr(assertions, "prove", fail)
        with pytest.raises(AnalysisFailed):
            await load(host, WIDER)
        assert "ASSERTION-NOT-PROVEN" in str(host.audit.events("deny")[-1]["why"])
        lost = APART.replace('[labels.red]\nste = ["red", "all"]\n', "")
        assert "[labels.red]" not in lost
        done = await load(host, lost, evict=True)
        assert {row["domain"] for row in done["evicted"]} == {"a", "b"}
        assert any("not proven again (MemoryError)" in text for text in done["warnings"])

    asserted = SYSTEM + '[[assert]]\nnever = "a -> c"\n[domains.c]\nlabel = "blue"\n'
    play(tmp_path, scene, APART, asserted + 'machine = "simulator"\nautostart = false\n')
