"""What is asserted holds of the labels in force: a relabel, a start and a load are proven of them.

The vault and the web share with nobody but who has the label `both`, and two clerks with each
other.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from skerry.control.failure import failed
from skerry.flow.deadline import TookTooLong
from skerry.node import live_labels, proving
from skerry.node.assertions import AnalysisFailed
from skerry.node.setup import Setup
from skerry.wire import control as wire
from skerry.xsm.explain import Refused
from tests.unit.control.test_assertions import load
from tests.unit.control.test_calls import Client, Host, play

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
ste = ["high", "low", "own"]
[labels.high-own]
ste = ["high", "own"]
[labels.low-own]
ste = ["low", "own"]
[labels.apart]
ste = ["own"]
"""
NEWER = POLICY.replace('"1.0"', '"1.1"')
NARROW = POLICY.replace('ste = ["high", "low", "own"]\n[labels.high', 'ste = ["own"]\n[labels.high')
"""Under it `both` is no more than `apart`."""

PLAIN = """
name = "live"
policy = "policy.toml"
[domains.vault]
label = "hi"
machine = "simulator"
[domains.web]
label = "lo"
machine = "simulator"
[domains.clerk]
label = "apart"
machine = "simulator"
[domains.other]
label = "apart"
machine = "simulator"
"""
SYSTEM = PLAIN + '[[assert]]\nnever = "vault -> web"\n'
PATH = "never vault -> web does not hold: vault -> clerk -> web"


async def relabel(host: Host, name: str, label: str, operator: str = "op") -> dict[str, Any]:
    """Relabel a domain as the command does."""
    done = await host.handle(wire.Relabel(name, label), Client(operator))
    return cast(dict[str, Any], done)


async def restart(host: Host, name: str) -> None:
    """Stop a domain and start it, which gives it the file's label again."""
    await host.handle(wire.Kill(name), Client("op"))
    await host.handle(wire.Start(name), Client("op"))


def label(host: Host, name: str) -> str:
    """Return the label that a domain has."""
    return host.monitor.domain(name).label.of("acm")


def test_a_relabel_that_would_break_an_assertion_is_refused_and_changes_nothing(
    tmp_path: Path,
) -> None:
    """With the path and the rules, by the code of a load, on record. The controls: a label that
    keeps it is given, and without the assertion that one too."""

    async def scene(host: Host) -> None:
        await host.up()
        await host.handle(wire.Connect("clerk", "other", port="talk"), Client("op"))
        live, allowed = set(host.node.bound()), len(host.audit.events("allow"))
        with pytest.raises(Refused) as caught:
            await relabel(host, "clerk", "both")
        reply = failed(caught.value)
        assert (reply.exit_code, reply.code) == (3, "ASSERTION-BROKEN")
        assert PATH in reply.text
        assert "clerk -> web: possible as" in reply.text
        assert "system.toml:17" in reply.text
        assert "try:" in reply.text
        assert label(host, "clerk") == "apart"
        assert set(host.node.bound()) == live
        assert len(host.audit.events("allow")) == allowed
        record = host.audit.events("deny")[-1]
        assert (record["hook"], record["domain"]) == ("domain_relabel", "clerk")
        assert PATH in str(record["why"])
        await relabel(host, "clerk", "high-own")
        assert label(host, "clerk") == "high-own"

    async def without(host: Host) -> None:
        await host.up()
        await relabel(host, "clerk", "both")
        assert label(host, "clerk") == "both"

    play(tmp_path, scene, POLICY, SYSTEM)
    play(tmp_path, without, POLICY, PLAIN)


def test_a_load_is_proven_of_the_labels_in_force(tmp_path: Path) -> None:
    """A policy that lets a relabelled domain pass on what the file's label would not. The control:
    with the file's labels it is loaded."""

    async def scene(host: Host) -> None:
        await host.up()
        await relabel(host, "clerk", "both")
        with pytest.raises(Refused, match="vault -> clerk -> web"):
            await load(host, NEWER)
        assert host.monitor.mediator.decider.generation == 1
        await relabel(host, "clerk", "apart")
        assert (await load(host, NEWER))["assertions"] == 1
        assert host.monitor.mediator.decider.generation == 2

    play(tmp_path, scene, NARROW, SYSTEM)


def test_a_load_is_not_kept_away_by_a_label_that_nobody_has_now(tmp_path: Path) -> None:
    """The file's label would break what is asserted, that in force does not. But the domain does
    not begin with the file's label again, until the policy is one under which it may."""
    file = SYSTEM.replace('[domains.clerk]\nlabel = "apart"', '[domains.clerk]\nlabel = "both"')

    async def scene(host: Host) -> None:
        await host.up()
        await restart(host, "clerk")
        await relabel(host, "clerk", "apart")
        assert (await load(host, NEWER))["assertions"] == 1
        await host.handle(wire.Kill("clerk"), Client("op"))
        with pytest.raises(Refused, match="vault -> clerk -> web"):
            await host.handle(wire.Start("clerk"), Client("op"))
        await load(host, NARROW)
        await host.handle(wire.Start("clerk"), Client("op"))
        assert label(host, "clerk") == "both"

    play(tmp_path, scene, NARROW, file)


def test_a_domain_does_not_begin_again_beside_one_whose_label_that_breaks(tmp_path: Path) -> None:
    """Each relabel kept what is asserted, and the two labels together do not, so that neither is
    the file's. The control: once the other has its label back it starts."""
    file = SYSTEM.replace('[domains.other]\nlabel = "apart"', '[domains.other]\nlabel = "low-own"')

    async def scene(host: Host) -> None:
        await host.up()
        await relabel(host, "other", "apart")
        await relabel(host, "clerk", "high-own")
        await host.handle(wire.Kill("other"), Client("op"))
        with pytest.raises(Refused, match="vault -> clerk -> other -> web"):
            await host.handle(wire.Start("other"), Client("op"))
        record = host.audit.events("deny")[-1]
        assert (record["hook"], record["domain"]) == ("domain_create", "other")
        await relabel(host, "clerk", "apart")
        await host.handle(wire.Start("other"), Client("op"))
        assert label(host, "other") == "low-own"

    play(tmp_path, scene, POLICY, file)


@pytest.mark.parametrize(
    ("error", "code"),
    [(MemoryError(), "ASSERTION-NOT-PROVEN"), (TookTooLong("late"), "ANALYSIS-TOO-LONG")],
)
def test_a_relabel_whose_proof_fails_is_refused_on_record(
    error: Exception, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can't be proven does not hold; who may not relabel gets nothing proven."""
    tried: list[object] = []

    def fail(*given: object, **_: object) -> None:
        tried.append(given)
        raise error

    async def scene(host: Host) -> None:
        await host.up()
        with monkeypatch.context() as patched:
            patched.setattr(proving, "violations", fail)
            with pytest.raises(Refused):
                await relabel(host, "clerk", "high-own", "lo")
            assert tried == []
            with pytest.raises(AnalysisFailed) as caught:
                await relabel(host, "clerk", "high-own")
        assert (caught.value.code, len(tried)) == (code, 1)
        assert code in str(host.audit.events("deny")[-1]["why"])
        assert label(host, "clerk") == "apart"
        await relabel(host, "clerk", "high-own")
        assert label(host, "clerk") == "high-own"

    play(tmp_path, scene, POLICY, SYSTEM)


def test_a_label_that_is_asserted_of_stands_for_who_has_it_now(tmp_path: Path) -> None:
    """A relabel that leaves a side without anybody is refused, since nothing can be proven of it.
    The control: another has it as well."""
    system = PLAIN + '[[assert]]\nnever = "hi -> lo"\n'
    second = '[domains.second]\nlabel = "hi"\nmachine = "simulator"\n'

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(AnalysisFailed, match=r"system\.toml:17: there is no label 'hi'"):
            await relabel(host, "vault", "high-own")
        assert label(host, "vault") == "hi"

    async def control(host: Host) -> None:
        await host.up()
        await relabel(host, "vault", "high-own")
        with pytest.raises(Refused, match="second -> clerk -> web"):
            await relabel(host, "clerk", "both")

    play(tmp_path, scene, POLICY, system)
    play(tmp_path, control, POLICY, system.replace("[domains.v", f"{second}[domains.v"))


class Gate:
    """Holds a proof up in its thread until it is let go; those after it go on."""

    def __init__(self, patch: pytest.MonkeyPatch, where: Any, name: str) -> None:
        self.begun, self._go = threading.Event(), threading.Event()
        self.made = 0
        plain = getattr(where, name)

        def held(*given: Any, **options: Any) -> object:
            self.made += 1
            if not self.begun.is_set():
                self.begun.set()
                assert self._go.wait(10)
            return plain(*given, **options)

        patch.setattr(where, name, held)

    async def reached(self) -> None:
        """Return when the first proof has begun."""
        assert await asyncio.to_thread(self.begun.wait, 10)

    def go(self) -> None:
        """Let the first proof go on."""
        self._go.set()


def test_a_load_between_proof_and_relabel_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the policy for which it was proven the label keeps what is asserted, under the next
    one it does not. The control: the next one brings nothing."""

    async def scene(host: Host, text: str, refused: bool) -> None:
        await host.up()
        with monkeypatch.context() as patched:
            gate = Gate(patched, live_labels, "prove_labels")
            giving = asyncio.create_task(relabel(host, "clerk", "both"))
            await gate.reached()
            await load(host, text)
            gate.go()
            if refused:
                with pytest.raises(Refused, match="vault -> clerk -> web"):
                    await giving
            else:
                await giving
        assert gate.made == 2
        assert label(host, "clerk") == ("apart" if refused else "both")

    again = NARROW.replace('"1.0"', '"1.1"')
    play(tmp_path, lambda host: scene(host, NEWER, True), NARROW, SYSTEM)
    play(tmp_path, lambda host: scene(host, again, False), NARROW, SYSTEM)


def test_two_relabels_that_break_it_together_are_not_both_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is proven beside what the other was before; whoever comes second is proven again."""

    async def scene(host: Host) -> None:
        await host.up()
        gate = Gate(monkeypatch, live_labels, "prove_labels")
        one = asyncio.create_task(relabel(host, "clerk", "high-own"))
        await gate.reached()
        await relabel(host, "other", "low-own")
        gate.go()
        with pytest.raises(Refused, match="vault -> clerk -> other -> web"):
            await one
        assert gate.made == 3
        assert label(host, "clerk") == "apart"

    play(tmp_path, scene, POLICY, SYSTEM)


def test_a_relabel_between_proof_and_load_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy would break what is asserted of the label that was given meanwhile."""

    async def scene(host: Host) -> None:
        await host.up()
        gate = Gate(monkeypatch, proving, "violations")
        loading = asyncio.create_task(load(host, NEWER))
        await gate.reached()
        await relabel(host, "clerk", "both")
        gate.go()
        with pytest.raises(Refused, match="vault -> clerk -> web"):
            await loading
        assert host.monitor.mediator.decider.generation == 1

    play(tmp_path, scene, NARROW, SYSTEM)


def test_a_relabel_while_a_load_is_written_down_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given between the comparison and the load's own question."""

    async def scene(host: Host) -> None:
        await host.up()
        plain, once = host.monitor.load, [True]

        async def loads(*given: Any, **options: Any) -> object:
            if once:
                once.clear()
                await relabel(host, "clerk", "both")
            return await plain(*given, **options)

        monkeypatch.setattr(host.monitor, "load", loads)
        with pytest.raises(Refused, match="vault -> clerk -> web"):
            await load(host, NEWER)
        assert host.monitor.mediator.decider.generation == 1

    play(tmp_path, scene, NARROW, SYSTEM)


def test_what_ends_while_a_load_is_proven_does_not_hold_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next start is proven; so nothing is proven twice for it."""

    async def scene(host: Host) -> None:
        await host.up()
        await relabel(host, "clerk", "high-own")
        gate = Gate(monkeypatch, proving, "violations")
        loading = asyncio.create_task(load(host, NEWER))
        await gate.reached()
        await host.handle(wire.Kill("clerk"), Client("op"))
        gate.go()
        assert (await loading)["generation"] == 2
        assert gate.made == 1

    play(tmp_path, scene, POLICY, SYSTEM)


def test_starts_beside_relabelled_domains_are_proven_once_for_the_same_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at all where they are those of the last load or start."""
    made: list[Setup] = []
    plain = proving.prove_labels

    def counting(setup: Setup, hook: str) -> None:
        made.append(setup)
        plain(setup, hook)

    async def scene(host: Host) -> None:
        await host.up()
        monkeypatch.setattr(live_labels, "prove_labels", counting)
        await restart(host, "other")
        assert made == []
        await relabel(host, "clerk", "high-own")
        made.clear()
        for _ in range(2):
            await restart(host, "other")
        assert len(made) == 1

    play(tmp_path, scene, POLICY, SYSTEM)
