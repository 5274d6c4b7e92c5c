"""What a running node proves counts who has written its disks, whatever a file says by now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.label import Label
from skerry.monitor.domain import Resource
from skerry.node import changing, reconcile_plan
from skerry.node import reconcile as reconciling
from skerry.node.proving import Proven, prove_change
from skerry.node.written import Written, lives_on
from skerry.policy.source import NewPolicy
from skerry.xsm.explain import Refused
from tests.support.past import (
    BEFORE,
    DISK,
    GONE,
    HEAD,
    OTHER,
    PAST,
    POLICY,
    READER,
    RELABELLED,
    WRITER,
)
from tests.support.reconciling import up
from tests.unit.control.test_calls import Host, play

P = Label((("acm", "p"),))

NEVER = '[[assert]]\nnever = "p -> n"\n'
APART = POLICY.replace('[labels.n]\nste = ["shelf"]', "[labels.n]\nste = []")
"""A policy under which `p` may write the disk, and `n` may read nothing."""
TURNED = POLICY.replace('ste = ["mine", "shelf"]', 'ste = ["mine"]')
"""One under which `n` may read it, and `p` may write it no more."""
BOTH = HEAD + WRITER + READER + DISK + NEVER
IDLE = BOTH.replace('uses = ["d"]\n', "")


async def load(host: Host, folder: Path, policy: str, *, dry_run: bool = False) -> None:
    """Load a policy as the owner."""
    node, change = host.node, NewPolicy(str(folder / "policy.toml"), policy.encode(), b"")
    owner = node.setup.owner
    await node.load("policy_load", owner, change, what="turns", dry_run=dry_run)


def disk_of(host: Host) -> Resource:
    """Return the node's disk."""
    return host.node.resources._made["d"][1]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_policy_under_which_what_was_written_flows_on_is_not_loaded(
    tmp_path: Path, dry_run: bool
) -> None:
    """The refusal says the path and that it is history. The control: nobody has written."""

    async def wrote(host: Host) -> None:
        await host.up()
        before = host.node.setup
        with pytest.raises(Refused) as caught:
            await load(host, tmp_path, TURNED, dry_run=dry_run)
        assert f"never p -> n does not hold: p -> d -> n ({PAST})" in str(caught.value)
        assert PAST in caught.value.explanation.text()
        assert host.node.setup is before

    async def idle(host: Host) -> None:
        await host.up()
        await load(host, tmp_path, TURNED, dry_run=dry_run)

    play(tmp_path, wrote, APART, BOTH)
    play(tmp_path, idle, APART, IDLE)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("wanted", [GONE, RELABELLED])
def test_a_file_without_the_label_that_wrote_is_refused_whole(
    tmp_path: Path, wanted: str, dry_run: bool
) -> None:
    """Nothing of it is done. The control: what it does not assert, it may say."""

    async def scene(host: Host) -> None:
        await host.up()
        setup = host.node.setup
        with pytest.raises(Refused) as caught:
            await up(host, wanted, POLICY, dry_run=dry_run)
        assert f"d -> n ({PAST})" in str(caught.value)
        assert host.node.setup is setup
        assert host.monitor.domain("p").label == P
        await up(host, wanted.split("[[assert]]", maxsplit=1)[0], POLICY, dry_run=dry_run)
        assert host.node.setup.written == {}

    play(tmp_path, scene, POLICY, BEFORE)


def test_a_released_disk_has_no_past(tmp_path: Path) -> None:
    """The same file is refused before and accepted after."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(Refused):
            await up(host, GONE, POLICY)
        disk_of(host).written = frozenset()  # as `Resources.release` leaves it
        host.monitor.kill("p")
        assert (await up(host, GONE, POLICY)).answer["left"] == []

    play(tmp_path, scene, POLICY, BEFORE)


def test_a_disk_that_a_file_brings_has_the_past_of_its_image(tmp_path: Path) -> None:
    """Whatever it is called, and though nothing of this node has used it. The control: another
    image."""

    async def scene(host: Host) -> None:
        await host.up()
        node, path = host.node, tmp_path / "written.json"
        node.resources._written = written = Written(path)
        assert node.resources.writers(node.setup) == {}
        spec = node.setup.system.resources["d"]
        await written.keep(lives_on(spec), [P], node.setup.stack)
        again = GONE.replace("[resources.d]", "[resources.e]").replace("d:ro", "e:ro")
        with pytest.raises(Refused, match=r"before:p -> e -> n \(history: the label p wrote e"):
            await up(host, again, POLICY)
        assert (await up(host, again.replace("d.img", "e.img"), POLICY)).answer["left"] == []

    play(tmp_path, scene, POLICY, HEAD + READER + DISK)


def slow(work: Callable[[], None]) -> Callable[..., Proven]:
    """Return a proof of a change in whose time something happens, once."""
    left = [work]

    def proof(*given: object, **more: object) -> Proven:
        found = prove_change(*given, **more)  # type: ignore[arg-type]
        if left:
            left.pop()()
        return found

    return proof


@pytest.mark.parametrize(("late", "dry_run"), [(False, False), (False, True), (True, False)])
def test_who_comes_to_write_during_a_proof_counts_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool, dry_run: bool
) -> None:
    """Also in the last step before the policy is in force. The control: nobody comes, and it is."""

    async def scene(host: Host) -> None:
        await host.up()
        node, disk = host.node, disk_of(host)

        def comes() -> None:
            disk.written |= {P}

        if late:
            remember = node.monitor.mediator.decider.remember

            async def remembering(*given: object) -> None:
                comes()
                await remember(*given)

            monkeypatch.setattr(node.monitor.mediator.decider, "remember", remembering)
        else:
            monkeypatch.setattr(changing, "prove_change", slow(comes))
        before = node.setup
        with pytest.raises(Refused) as caught:
            await load(host, tmp_path, TURNED, dry_run=dry_run)
        assert PAST in str(caught.value)
        assert node.setup is before
        monkeypatch.undo()
        disk.written = frozenset()
        await load(host, tmp_path, TURNED)
        assert node.setup is not before

    play(tmp_path, scene, APART, IDLE)


@pytest.mark.parametrize("late", [False, True])
def test_who_comes_to_write_after_a_plan_is_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Before the file is in force it does not come into it, and nothing is started; in that very
    step, what holds no more is said, and nothing is started either. The control: nobody came."""

    async def scene(host: Host) -> None:
        await host.up()
        node, before = host.node, host.node.setup
        plan, adopt = reconcile_plan.plan_difference, host.node.adopt

        async def planned(*given: object) -> object:
            found = await plan(*given)  # type: ignore[arg-type]
            disk_of(host).written |= {P}
            return found

        async def adopted(adopting: changing.Adoption) -> None:
            await adopt(adopting)
            disk_of(host).written |= {P}

        if late:
            monkeypatch.setattr(node, "adopt", adopted)
        else:
            monkeypatch.setattr(reconciling, "plan_difference", planned)
        result = await up(host, GONE, POLICY)
        if late:
            assert result.refused == ["what is asserted", "domain n"]
            assert PAST in str(result.answer["refused"])
        else:
            assert result.refused == ["the policy and what the owner fixed"]
            assert "who has written what changed meanwhile" in str(result.answer["refused"])
            assert node.setup is before
            assert "n" not in host.monitor.domains
        monkeypatch.undo()
        with pytest.raises(Refused):
            await up(host, GONE, POLICY)
        disk_of(host).written = frozenset()
        assert (await up(host, GONE, POLICY)).refused == []
        assert "n" in host.monitor.domains

    play(tmp_path, scene, POLICY, HEAD + OTHER + DISK)


UPDATE = POLICY.replace(
    'version = "1.0"', 'version = "2.0"\nfrom = { name = "tests.past", version = "1.0" }'
)
RENAMED = UPDATE.replace("[labels.p]", '[labels.q]\nfrom = "p"')
REUSED = RENAMED + '[labels.p]\nfrom = "z"\nste = ["other"]\n'
"""`p` is called `q` now, and in the second `p` is another one's name."""


@pytest.mark.parametrize("policy", [RENAMED, REUSED])
def test_an_assertion_of_a_label_never_comes_to_mean_another(tmp_path: Path, policy: str) -> None:
    """Until the file names it anew, which may come with the policy. The control renames nothing."""

    async def scene(host: Host) -> None:
        await host.up()
        before = host.node.setup
        with pytest.raises(InputError, match="label:p means another label"):
            await load(host, tmp_path, policy)
        assert host.node.setup is before
        anew = GONE.replace("label:p", "label:q")
        assert (await up(host, anew, policy)).answer["left"] == []
        assert [one.source for one in host.node.setup.system.asserts] == ["label:q"]

    async def control(host: Host) -> None:
        await host.up()
        await load(host, tmp_path, UPDATE)

    play(tmp_path, scene, POLICY, GONE)
    play(tmp_path, control, POLICY, GONE)
