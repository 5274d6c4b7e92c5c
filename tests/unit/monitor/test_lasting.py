"""Walls with history while channels last and others are being bound: nothing gets round them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from skerry.errors import SkerryError
from skerry.label import Label
from skerry.monitor.domain import Domain, Resource, State
from skerry.monitor.protocols import Kind
from skerry.monitor.table import Channel, Phase
from skerry.node.asking import Asker
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import Source, make_policy
from skerry.xsm.explain import Refused
from skerry.xsm.stack import History
from tests.support.monitor import ToyAudit, ToyMachine, World
from tests.support.resources import ToyUses
from tests.support.sharing import POLICY, Store, sharing

OWN = {"alice": {"bank-a"}, "bob": {"bank-b"}}
BANKS = {"bank-a", "bank-b"}
RIVALS = ("alice", "bob")
SECURITY = Label((("acm", "security"),))
NEUTRALS = ("auditor", "courier", "printer", "clerk")
LATER = POLICY + "".join(f'[labels.{name}]\nste = ["common"]\n' for name in NEUTRALS[2:])


class Knowledge:
    """Follows what each domain knows, from whomever a channel could have told it.

    The worst that guests can do: all is told at once over whatever is live, and kept for the next
    domain of the label.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Domain, set[str]] = {}
        self._kept: dict[str, set[str]] = {}
        self.met: list[str] = []
        bound = store.monitor._bound

        def watched(channel: Channel) -> None:
            bound(channel)
            self.look()

        store.monitor._bound = watched  # type: ignore[method-assign] # to see each that goes live

    def look(self) -> None:
        """Let everybody tell everything, and note who knows two sides."""
        monitor = self._store.monitor
        for domain in monitor.domains.values():
            if domain.state in (State.PAUSED, State.RUNNING):
                label = str(domain.label)
                if domain not in self._known:
                    self._of(domain).update(self._kept.get(label, ()))
                self._of(domain).update(OWN.get(label, ()))
        live = [
            channel
            for channel in monitor.channels
            if channel.phase is Phase.LIVE
            and all(end.state is not State.ENDED for end in channel.machines)
        ]
        for _ in live:
            for channel in live:
                one, two = self._of(channel.source), self._of(channel.sink)
                reads = isinstance(channel.sink, Resource) and channel.one_way
                if reads or not channel.one_way:
                    one |= two
                if not reads:
                    two |= one
        for domain, known in self._known.items():
            if not isinstance(domain, Resource):
                self._kept.setdefault(str(domain.label), set()).update(known)
            if known >= BANKS:
                self.met.append(domain.name)

    def _of(self, domain: Domain) -> set[str]:
        return self._known.setdefault(domain, set())


class Slow(MemoryHistory):
    """A history on a disk that takes its time, more or less by chance."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    async def save(self, history: History) -> None:
        """Keep it, some turns later."""
        await _turns(self._chance, 6)
        await super().save(history)


class SlowAudit(ToyAudit):
    """A trail that takes its time."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    async def append(self, event: str, fields: Mapping[str, object]) -> int:
        """Record, some turns later."""
        await _turns(self._chance, 6)
        return await super().append(event, fields)


class Hollow(ToyMachine):
    """A machine that takes no ends: here it only matters which channels are live."""

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Take a turn."""
        await self._step("attach")


async def _turns(chance: random.Random, most: int) -> None:
    for _ in range(chance.randrange(most)):
        await asyncio.sleep(0)


def act(store: Store, chance: random.Random) -> Coroutine[Any, Any, object]:
    """Return something that an operator or a guest might do."""
    monitor = store.monitor
    one, two = chance.sample(NEUTRALS, 2)
    one_way = chance.random() < 0.3

    async def cut() -> None:
        live = [channel.number for channel in monitor.channels if channel.phase is Phase.LIVE]
        if live:
            monitor.cut(chance.choice(live))

    async def swap() -> None:
        running = [name for name in RIVALS if _runs(store, name)]
        for name in running:
            await _killed(store, name)
        await _started(store, RIVALS[0] if "bob" in running else RIVALS[1])

    async def restart() -> None:
        await _killed(store, one)
        await _started(store, one)

    acts: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "talk": lambda: monitor.bind(one, two, one_way=one_way),
        "tell": lambda: monitor.bind(_rival(store), one, one_way=one_way),
        "use": lambda: monitor.bind(one, "store", port="store", one_way=one_way),
        "relabel": lambda: monitor.relabel(store.label("system"), one, store.label(two)),
        "cut": cut,
        "swap": swap,
        "restart": restart,
    }
    (what,) = chance.choices(list(acts), (6, 4, 1, 1, 3, 3, 1))
    return acts[what]()


def _rival(store: Store) -> str:
    return next((name for name in RIVALS if _runs(store, name)), RIVALS[0])


def _runs(store: Store, name: str) -> bool:
    found = store.monitor.domains.get(name)
    return found is not None and found.state is not State.ENDED


async def _killed(store: Store, name: str) -> None:
    store.monitor.kill(name)
    await store.monitor.domain(name).gone.wait()


async def _started(store: Store, name: str) -> None:
    def make() -> Hollow:
        store.world.machines[name] = machine = Hollow()
        return machine

    await store.monitor.start(store.label("system"), name, store.label(name), make)


def met(seed: int, *, joins: bool = True) -> list[str]:
    """Let many act at once, and return who knew two sides of the wall, over the whole time.

    The control is without what live channels join.
    """
    chance = random.Random(seed)
    stack = make_policy([Source("policy.toml", LATER.encode())]).stack

    async def play() -> list[str]:
        world = World()
        world.audit = world.monitor._audit = world.monitor.mediator.audit = SlowAudit(chance)
        world.monitor._bridges = {"stream": ToyUses()}
        manager = PolicyManager(stack, Slow(chance))
        store = Store(world, manager)
        if not joins:
            world.monitor.channels._remembers = lambda: False
        knowledge = Knowledge(store)
        for name in ("alice", *NEUTRALS):
            await _quietly(_started(store, name))
        acting = []
        for _ in range(60):
            acting.append(asyncio.ensure_future(_quietly(act(store, chance))))
            await _turns(chance, 20)
            knowledge.look()
        await asyncio.gather(*acting)
        knowledge.look()
        world.close()
        await world.monitor.settle()
        return knowledge.met

    return asyncio.run(play())


async def _quietly(doing: Coroutine[Any, Any, object]) -> None:
    with contextlib.suppress(SkerryError):
        await doing


def test_two_sides_of_a_wall_never_meet_whatever_many_do_at_once() -> None:
    """Starts, binds, uses of a disk, cuts, kills and relabels of 100 runs, each in another order.

    The control: where channels join nobody, they meet.
    """
    assert [seed for seed in range(100) if met(seed)] == []
    assert any(met(seed, joins=False) for seed in range(200))


def test_a_live_channel_leads_round_no_wall() -> None:
    """What one end learns later counts for the other, so the rival is kept out, and told by what.

    The control: once the channel is cut, before anything was learnt, each may go its way.
    """

    async def scene(store: Store, *, cut: bool) -> None:
        await store.run("courier", "auditor", "alice")
        between = await store.monitor.bind("courier", "auditor")
        if cut:
            store.monitor.cut(between.number)
        await store.monitor.bind("alice", "courier")
        await _killed(store, "alice")
        await store.run("bob")
        if cut:
            await store.monitor.bind("auditor", "bob")
            return
        with pytest.raises(Refused, match=r"auditor \{bank-a\} and bob \{bank-b\}"):
            await store.monitor.bind("auditor", "bob")

    sharing(partial(scene, cut=False))
    sharing(partial(scene, cut=True))


def test_a_guest_is_told_nothing_of_whom_a_channel_would_join() -> None:
    """He may see whom he asked for, and not who is joined to it; the operator hears who it is."""

    async def scene(store: Store) -> None:
        await store.run("courier", "auditor", "system", "bob")
        await store.monitor.bind("courier", "auditor")
        await store.manager.touch(store.label("courier"), store.label("alice"))
        with pytest.raises(Refused) as refused:
            await store.monitor.bind("bob", "auditor")
        assert "courier {bank-a}" in refused.value.explanation.sentence
        told = refused.value.explanation.for_guest(may_see_target=True)
        assert told["target"] == "auditor"
        assert "courier" not in str(told)

    sharing(scene)


def test_who_reads_a_disk_learns_what_its_writer_is_told_later() -> None:
    """Over the disk as over a channel. The control: after the writer's use was cut, no more."""

    async def scene(store: Store, *, cut: bool) -> None:
        await store.run("courier", "auditor", "alice")
        writing = await store.bind("courier", "rw")
        await store.bind("auditor", "ro")
        if cut:
            store.monitor.cut(writing)
        await store.monitor.bind("alice", "courier")
        assert await store.may_exchange("auditor", "bob") is cut

    sharing(partial(scene, cut=False))
    sharing(partial(scene, cut=True))


def test_a_channel_that_goes_live_while_another_is_being_bound_counts_for_both() -> None:
    """Neither was live when the other was asked about; who is later is asked again, for all."""

    async def scene(store: Store) -> None:
        await store.run("courier", "auditor", "alice")
        store.world.audit.gate = asyncio.Event()
        two = ("courier", "auditor"), ("alice", "courier")
        both = [asyncio.ensure_future(store.monitor.bind(*each)) for each in two]
        await asyncio.sleep(0)
        assert await store.may_exchange("auditor", "bob"), "the control"
        store.world.audit.gate.set()
        await asyncio.gather(*both)
        assert not await store.may_exchange("auditor", "bob")

    sharing(scene)


def test_many_that_are_bound_to_one_at_once_do_not_keep_each_other_from_it() -> None:
    """Each is asked once, has one record, and goes live; what one of them has touched then all
    have. The control: before, the last of them may deal with the other side."""

    async def scene(store: Store) -> None:
        names = [f"clerk{number}" for number in range(40)]
        more = "".join(f'[labels.{name}]\nste = ["common"]\n' for name in names)
        store.manager.load(make_policy([Source("policy.toml", (POLICY + more).encode())]).stack)
        await store.run("courier", *names)
        await store.manager.touch(store.label(names[0]), store.label("alice"))
        assert await store.may_exchange(names[-1], "bob")
        before = len(store.world.audit.events("allow"))
        await asyncio.gather(*(store.monitor.bind("courier", name) for name in names))
        assert len(store.world.audit.events("allow")) == before + len(names)
        for name in names:
            assert not await store.may_exchange(name, "bob")

    sharing(scene)


def test_what_stands_after_a_restart_is_touched_as_one() -> None:
    """Who is joined over several readmitted channels shares what each has touched."""

    async def scene(store: Store) -> None:
        await store.run("courier", "auditor", "system")
        one, two, three = (store.monitor.domain(n) for n in ("courier", "auditor", "system"))
        stood = (
            Channel(7, "stream", one, two, "x", False),
            Channel(8, "link", two, three, "y", False),
        )
        for channel in stood:
            store.monitor.readmit_channel(channel)
        await store.manager.touch(store.label("courier"), store.label("alice"))
        assert await store.may_exchange("system", "bob"), "the control"
        fall = await store.monitor.judge_again(store.manager.candidate(store.manager.stack))
        assert fall.kept == stood
        assert not await store.may_exchange("system", "bob")

    sharing(scene)


def test_a_policy_that_begins_to_keep_a_history_counts_all_that_is_joined_then() -> None:
    """Before the load returns, whoever is joined over several channels has touched the same."""

    async def scene(store: Store) -> None:
        text = POLICY.replace("history = true", "")
        assert text != POLICY
        store.manager.load(make_policy([Source("policy.toml", text.encode())]).stack)
        chain = ("alice", "courier", "auditor", "system")
        await store.run(*chain)
        for each in reversed(list(pairwise(chain))):
            await store.monitor.bind(*each)
        stack = make_policy([Source("policy.toml", POLICY.encode())]).stack
        candidate = store.manager.candidate(stack)
        operator = store.label("system")
        done = await store.monitor.load("policy_load", operator, SECURITY, candidate, {})
        assert (len(done.kept), done.cut) == (3, ())
        for name in chain[1:]:
            assert not await store.may_exchange(name, "bob")
            assert await store.may_exchange(name, "alice"), "the control"

    sharing(scene)


def test_an_operator_gets_nothing_of_a_domain_that_his_label_may_not_run_beside() -> None:
    """By no command and no console, and the same is said of all that could be. The control: an
    operator on neither side."""

    async def scene(store: Store) -> None:
        await store.run("bob")
        flows = Asker(store.manager.stack)
        rival, free, bob = (store.label(name) for name in ("alice", "auditor", "bob"))
        for hook in ("domain_exec", "domain_console", "domain_console_read"):
            await store.monitor.use(hook, free, "bob")
            with pytest.raises(Refused, match="conflicts with the running bob"):
                await store.monitor.use(hook, rival, "bob")
        assert flows.operated(free, bob, None, reads=True)
        assert flows.operated(rival, bob, None, reads=True) == []
        await store.monitor.use("domain_pause", rival, "bob")

    sharing(scene)
