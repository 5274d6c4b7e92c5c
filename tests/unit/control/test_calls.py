"""Calls on a node of simulated machines: what others do between the steps of a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from skerry.channel.stream import StreamBridges
from skerry.control.calls import Calls
from skerry.control.server import Session
from skerry.device.resource import Uses
from skerry.errors import Denied, InputError, MachineError, NotFound, SkerryError, WireError
from skerry.label import Label
from skerry.machine.simulator.machine import SimulatedMachine
from skerry.monitor.domain import Resource, State
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Machine
from skerry.node.node import Node
from skerry.node.resources import MakeUses, Resources
from skerry.node.setup import load_setup
from skerry.policy.compile import compile_policy
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.update import with_booleans, with_policy
from skerry.system.model import DomainSpec, ResourceKind, ResourceSpec
from skerry.wire import control as wire
from skerry.xsm.stack import Stack
from tests.support.monitor import ToyAudit
from tests.support.resources import ToyUses

POLICY = """
[policy]
name = "calls"
version = "1.0"
bootstrap = "op"
[simple-type-enforcement]
types = ["red", "blue", "all"]
[labels.op]
ste = ["red", "blue", "all"]
[labels.red]
ste = ["red", "all"]
[labels.blue]
ste = ["blue", "all"]
[labels.helper]
ste = ["red"]
"""

SYSTEM = """
name = "calls"
policy = "policy.toml"
[domains.a]
label = "red"
machine = "simulator"
[domains.b]
label = "red"
machine = "simulator"
[[channels]]
kind = "stream"
from = "a"
to = "b"
name = "orders"
"""


class Client:
    """A session without a socket: `type` gives its input, `shown` is what it got."""

    def __init__(self, operator: str) -> None:
        self.operator = Label((("acm", operator),))
        self.uid = 0
        self.shown = b""
        self._typed: asyncio.Queue[bytes | None] = asyncio.Queue()

    def type(self, data: bytes | None) -> None:
        """Send input; None closes the connection."""
        self._typed.put_nowait(data)

    async def inputs(self) -> AsyncIterator[bytes]:
        """Yield what was typed."""
        while (data := await self._typed.get()) is not None:
            yield data

    async def gone(self) -> None:
        """Return when it has closed."""
        async for _ in self.inputs():
            pass

    async def output(self, stream: str, data: bytes) -> None:
        """Keep what was shown."""
        self.shown += data


class Host:
    """A node with two simulated domains that share, and an operator who may see red only."""

    def __init__(self, folder: Path, policy: str, system: str) -> None:
        (folder / "policy.toml").write_text(policy)
        (folder / "system.toml").write_text(system)
        setup = load_setup(folder / "system.toml")
        self.audit = ToyAudit()
        self.machines: dict[str, SimulatedMachine] = {}
        manager = PolicyManager(setup.stack, MemoryHistory())
        self.monitor = Monitor(manager, self.audit, {"stream": StreamBridges()}, lambda: 0.0)
        self.disks: dict[str, ToyUses] = {}
        makers: dict[ResourceKind, MakeUses] = {"disk": self._uses, "tpm": self._uses}
        resources = Resources(makers)
        resources.follow(self.monitor, setup)
        self.node = Node(setup, self.monitor, self._make, lambda: 0.0, None, resources)
        self.calls = Calls(self.node)
        self.events: list[dict[str, object]] = []

    def _make(self, domain: DomainSpec, label: Label) -> Machine:
        self.machines[domain.name] = SimulatedMachine(domain.name)
        return self.machines[domain.name]

    def _uses(self, spec: ResourceSpec, resource: Callable[[], Resource]) -> Uses:
        self.disks[spec.name] = ToyUses()
        return self.disks[spec.name]

    async def up(self) -> None:
        """Bring both domains up."""
        await self.node.up(lambda event: self.events.append(dict(event)))

    async def handle(self, call: wire.Call, client: Client) -> object:
        """Carry out one call."""
        return await self.calls.handle(call, cast(Session, client))


def play(
    folder: Path,
    scene: Callable[[Host], Awaitable[None]],
    policy: str = POLICY,
    system: str = SYSTEM,
) -> None:
    """Run one scene on a fresh node and bring it down."""

    async def run() -> None:
        host = Host(folder, policy, system)
        try:
            await scene(host)
        finally:
            await host.node.down(0.1)
            await host.monitor.settle()

    asyncio.run(run())


async def ticks(count: int = 30) -> None:
    """Let the other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_command_whose_input_comes_after_a_relabel_is_asked_anew(tmp_path: Path) -> None:
    """The decision that counts is made when the command can run; the control: no relabel."""

    async def scene(host: Host) -> None:
        await host.up()
        for new, code in (("", 0), ("blue", 3)):
            client = Client("helper")
            call = host.handle(wire.Exec("a", ("echo", "hello"), stdin=True), client)
            running = asyncio.create_task(call)
            await ticks()
            if new:
                await host.handle(wire.Relabel("a", new), Client("op"))
            client.type(b"")
            if code:
                with pytest.raises(Denied):
                    await running
                assert client.shown == b""
            else:
                assert await running == {"exit_code": 0}
                assert b"hello" in client.shown

    play(tmp_path, scene)


def test_no_session_survives_the_relabel_of_its_domain(tmp_path: Path) -> None:
    """At whatever step the relabel comes: the console ends, or was asked under the new label."""

    async def scene(host: Host) -> None:
        await host.up()
        for steps in range(25):
            client = Client("helper")
            console = asyncio.create_task(host.handle(wire.Console("a"), client))
            await ticks(steps)
            relabel = asyncio.create_task(host.handle(wire.Relabel("a", "blue"), Client("op")))
            with pytest.raises(Denied):
                await asyncio.wait_for(console, 2)
            await relabel
            await host.handle(wire.Relabel("a", "red"), Client("op"))
            assert not any(host.node.sessions._open.values())

    play(tmp_path, scene)


def test_a_session_ends_with_its_reason_when_the_domain_dies(tmp_path: Path) -> None:
    """Nobody asked for the end; the operator is told all the same."""

    async def scene(host: Host) -> None:
        await host.up()
        client = Client("op")
        console = asyncio.create_task(host.handle(wire.Console("a"), client))
        await ticks()
        host.machines["a"].die(1, "it crashed")
        with pytest.raises(Denied, match="its domain ended"):
            await console

    play(tmp_path, scene)


def test_one_domain_that_cannot_run_does_not_end_the_system(tmp_path: Path) -> None:
    """What the others are is up; what failed is said."""

    async def scene(host: Host) -> None:
        make = host.node._make

        def broken(spec: DomainSpec, label: Label) -> Machine:
            machine = cast(SimulatedMachine, make(spec, label))
            if spec.name == "a":
                machine.faults.fail.add("resume")
            return machine

        host.node._make = broken  # type: ignore[assignment] # a maker of machines all the same
        await host.up()
        assert host.monitor.domain("b").state is State.RUNNING
        refused = [e for e in host.events if e["event"] == "refused"]
        assert [e["what"] for e in refused] == ["domain a"]
        with pytest.raises(MachineError):
            await host.handle(wire.Resume("a"), Client("op"))

    play(tmp_path, scene)


@pytest.mark.parametrize("port", ["skerry.agent", "a/b", "../x", "a\n", "orders\n", "A", " "])
def test_a_port_name_is_held_to_the_same_rule_as_in_the_system_file(port: str) -> None:
    """What the file may not say, a call may not say either; a plain name passes."""
    assert wire.decode_call(wire.encode(wire.Connect("a", "b", port="orders.2")))
    assert wire.decode_call(wire.encode(wire.Connect("a", "b")))
    with pytest.raises(WireError):
        wire.decode_call(wire.encode(wire.Connect("a", "b", port=port)))


def test_a_text_that_is_not_unicode_is_an_error_in_words() -> None:
    """The shell gives such words; no traceback comes of them."""
    with pytest.raises(WireError, match="UTF-8"):
        wire.encode(wire.Start("\udcff"))


async def load(host: Host, text: str, operator: str = "op", **options: Any) -> dict[str, object]:
    """Load a policy as the command does."""
    client = Client(operator)
    client.type(text.encode())
    client.type(b"")
    result = await host.handle(wire.PolicyLoad("next.toml", **options), client)
    return cast(dict[str, object], result)


APART = POLICY.replace('[labels.red]\nste = ["red", "all"]', "[labels.red]\nste = []")
LOST = POLICY.replace("[labels.red]", "[labels.green]")


def test_a_load_cuts_channels_and_sessions_that_the_new_policy_refuses(tmp_path: Path) -> None:
    """And says what it cut; `policy show` shows the new one, and the old one's grants are gone."""

    async def scene(host: Host) -> None:
        await host.up()
        console = asyncio.create_task(host.handle(wire.Console("a"), Client("helper")))
        await ticks()
        before = cast(dict[str, object], await host.handle(wire.PolicyShow(), Client("op")))
        dry = await load(host, APART, dry_run=True)
        assert [cut["channel"] for cut in cast(list[dict[str, object]], dry["cut"])] == [1]
        assert not console.done()
        done = await load(host, APART)
        assert done["cut"] == dry["cut"]
        assert (done["generation"], done["kept"], done["sessions_cut"]) == (2, 0, 1)
        with pytest.raises(Denied, match="the policy changed"):
            await console
        assert list(host.monitor.channels) == []
        shown = cast(dict[str, object], await host.handle(wire.PolicyShow(), Client("op")))
        assert shown["generation"] == 2
        assert shown["digest"] == done["policy"] != before["digest"]

    play(tmp_path, scene)


def test_a_load_leaves_what_it_still_allows(tmp_path: Path) -> None:
    """The control: channel and session go on under the same policy loaded again."""

    async def scene(host: Host) -> None:
        await host.up()
        console = asyncio.create_task(host.handle(wire.Console("a"), Client("helper")))
        await ticks()
        done = await load(host, POLICY)
        assert (done["cut"], done["kept"], done["sessions_cut"]) == ([], 1, 0)
        assert not console.done()
        console.cancel()

    play(tmp_path, scene)


def test_a_load_is_for_those_whom_the_policy_lets(tmp_path: Path) -> None:
    """Another operator's is refused and changes nothing, and so is a file that is no policy."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(Denied, match="only the bootstrap label"):
            await load(host, APART, "helper")
        with pytest.raises(InputError, match=r"next\.toml"):
            await load(host, "nonsense = ")
        with pytest.raises(InputError, match="only a FLASK policy has booleans"):
            await host.handle(wire.SetBooleans({"x": True}), Client("op"))
        assert len(list(host.monitor.channels)) == 1
        assert host.monitor.mediator.decider.generation == 1

    play(tmp_path, scene)


def test_a_label_that_is_gone_evicts_only_when_told(tmp_path: Path) -> None:
    """Domains are named first; their next start is refused by the new policy."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(SkerryError, match=r"domains can't stay: a: .*'red'.*--evict"):
            await load(host, LOST)
        assert host.monitor.domain("a").state is State.RUNNING
        done = await load(host, LOST, evict=True)
        assert [e["domain"] for e in cast(list[dict[str, object]], done["evicted"])] == ["a", "b"]
        assert host.monitor.domain("a").state is State.ENDED
        with pytest.raises(Denied, match="defines no label 'red'"):
            await host.handle(wire.Start("a"), Client("op"))

    play(tmp_path, scene)


def test_nobody_loads_a_policy_that_shuts_himself_out(tmp_path: Path) -> None:
    """Not even with `evict`: nobody could load another one."""

    async def scene(host: Host) -> None:
        await host.up()
        other = POLICY.replace('bootstrap = "op"', 'bootstrap = "blue"').replace(
            "[labels.op]", "[labels.no]"
        )
        host.node.setup = msgspec.structs.replace(
            host.node.setup, operators={0: Label((("acm", "op"),))}
        )
        with pytest.raises(SkerryError, match="your own label op"):
            await load(host, other, evict=True)
        assert host.monitor.mediator.decider.generation == 1

    play(tmp_path, scene)


def test_a_policy_that_breaks_an_assertion_is_not_loaded(tmp_path: Path) -> None:
    """What was proven before the start stays true; the control loads without the assertion."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(SkerryError, match="never a -> b does not hold: a -> b"):
            await load(host, wider)
        assert host.monitor.mediator.decider.generation == 1
        system = msgspec.structs.replace(host.node.setup.system, asserts=())
        host.node.setup = msgspec.structs.replace(host.node.setup, system=system)
        assert (await load(host, wider))["generation"] == 2

    apart = POLICY.replace('ste = ["blue", "all"]', 'ste = ["blue"]')
    wider = apart.replace('[labels.blue]\nste = ["blue"]', '[labels.blue]\nste = ["red"]')
    asserted = SYSTEM.replace('[domains.b]\nlabel = "red"', '[domains.b]\nlabel = "blue"')
    asserted += '[[assert]]\nnever = "a -> b"\n'
    play(tmp_path, scene, apart, asserted)


ALARMED = (
    SYSTEM
    + """
[alarm.quiet]
stop = ["b"]
"""
)


def test_an_alarm_that_only_ends_asks_nobody(tmp_path: Path) -> None:
    """Taking away never asks; an alarm that the file lacks is named, with those that it has."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(NotFound, match=r"no alarm loud; the system file has: quiet"):
            await host.handle(wire.RaiseAlarm("loud"), Client("op"))
        done = await host.handle(wire.RaiseAlarm("quiet"), Client("helper"))
        assert done == {
            "alarm": "the alarm quiet",
            "evicted": [{"domain": "b", "why": "the alarm quiet"}],
        }
        assert host.monitor.domain("b").state is State.ENDED
        assert host.monitor.domain("a").state is State.RUNNING
        assert await host.handle(wire.RaiseAlarm("quiet"), Client("op")) == {
            "alarm": "the alarm quiet",
            "evicted": [],
        }

    play(tmp_path, scene, system=ALARMED)


FLASK = """
class domain
class event
class grant
class security
sid xenboot
sid xen
sid dom0
sid domio
sid domxen
sid unlabeled
sid security
class domain { create unpause destroy getdomaininfo transition }
class event { create bind send }
class grant { map_read map_write }
class security { load_policy setbool }
bool bridged true;
type dom0_t; type dom_t; type channel_t; type security_t;
role sys_r; role sys_r types { dom0_t dom_t channel_t security_t };
allow dom0_t dom_t:domain { create unpause getdomaininfo };
allow dom0_t security_t:security load_policy;
type_transition dom_t dom_t:event channel_t;
type_transition dom0_t dom_t:event channel_t;
type_transition dom_t dom0_t:event channel_t;
if (bridged) {
allow dom_t dom_t:grant { map_read map_write };
}
allow { dom_t dom0_t } channel_t:event { create send };
allow channel_t { dom_t dom0_t }:event bind;
user sys_u roles { sys_r };
sid xenboot sys_u:sys_r:dom0_t
sid xen sys_u:sys_r:dom0_t
sid dom0 sys_u:sys_r:dom0_t
sid domio sys_u:sys_r:dom0_t
sid domxen sys_u:sys_r:dom0_t
sid unlabeled sys_u:sys_r:security_t
sid security sys_u:sys_r:security_t
"""

LOCKDOWN = """
name = "alarms"
policy = "policy.toml"
domains.a = { label = "sys_u:sys_r:dom_t", machine = "simulator" }
domains.b = { label = "sys_u:sys_r:dom_t", machine = "simulator" }
domains.c = { label = "sys_u:sys_r:dom_t", machine = "simulator" }
[[channels]]
kind = "stream"
from = "a"
to = "b"
name = "orders"
[alarm.lockdown]
stop = ["c"]
booleans = { bridged = false }
"""

OWNER, GUEST = "sys_u:sys_r:dom0_t", "sys_u:sys_r:dom_t"


class FlaskClient(Client):
    """An operator with a security context."""

    def __init__(self, operator: str) -> None:
        super().__init__(operator)
        self.operator = Label((("flask", operator),))


def test_an_alarm_sets_its_booleans_and_ends_its_domains_as_one_change(tmp_path: Path) -> None:
    """One generation; what the booleans no longer allow is cut, and what is named ends."""

    async def scene(host: Host) -> None:
        await host.up()
        assert len(list(host.monitor.channels)) == 1
        done = await host.handle(wire.RaiseAlarm("lockdown"), FlaskClient(OWNER))
        assert isinstance(done, dict)
        assert (done["generation"], done["kept"]) == (2, 0)
        assert "dom_t dom_t:grant map_read" in done["cut"][0]["why"]
        assert done["evicted"] == [{"domain": "c", "why": "the alarm lockdown"}]
        assert host.monitor.domain("c").state is State.ENDED
        assert host.monitor.domain("a").state is State.RUNNING
        with pytest.raises(Denied, match="dom_t dom_t:grant"):
            await host.handle(wire.Connect("a", "b"), FlaskClient(OWNER))
        await host.handle(wire.SetBooleans({"bridged": True}), FlaskClient(OWNER))
        await host.handle(wire.Connect("a", "b"), FlaskClient(OWNER))

    allowed = FLASK.replace("security load_policy;", "security { load_policy setbool };")
    play(tmp_path, scene, allowed, LOCKDOWN)


def test_an_alarm_ends_its_domains_also_where_its_booleans_are_refused(tmp_path: Path) -> None:
    """The refusal is said all the same, and the policy stays."""

    async def scene(host: Host) -> None:
        await host.up()
        done = await host.handle(wire.RaiseAlarm("lockdown"), FlaskClient(OWNER))
        assert isinstance(done, dict)
        assert done["evicted"] == [{"domain": "c", "why": "the alarm lockdown"}]
        assert "no rule allows dom0_t security_t:security setbool" in done["failed"]["text"]
        assert done["failed"]["exit_code"] == 3
        assert host.monitor.mediator.decider.generation == 1
        assert host.monitor.domain("c").state is State.ENDED
        assert host.monitor.domain("a").state is State.RUNNING

    play(tmp_path, scene, FLASK, LOCKDOWN)


def test_an_alarm_names_what_there_is(tmp_path: Path) -> None:
    """Domains and booleans that do not exist are mistakes of the file, at their lines."""
    (tmp_path / "policy.toml").write_text(FLASK)
    for old, new, message in (
        ('["c"]', '["d"]', r":13: no domain 'd'"),
        ("bridged = false", "bridge = false", r":14: .*no boolean bridge; it has: bridged"),
        ("{ bridged = false }", "{ bridged = 0 }", r":14: bridged must be true or false"),
        ('stop = ["c"]\nbooleans = { bridged = false }', "", r"the alarm 'lockdown' does nothing"),
    ):
        (tmp_path / "system.toml").write_text(LOCKDOWN.replace(old, new))
        with pytest.raises(InputError, match=message):
            load_setup(tmp_path / "system.toml")


PERMITTED = FLASK.replace("security load_policy;", "security { load_policy setbool };")
BRIDGE = "if (bridged) {\nallow dom_t dom_t:grant { map_read map_write };\n}\n"
UNBRIDGED = PERMITTED.replace(BRIDGE, "if (bridged) {\nallow dom_t dom_t:grant map_read;\n}\n")


async def load_flask(host: Host, text: str) -> dict[str, object]:
    """Compile a policy and load it as the command does."""
    client = FlaskClient(OWNER)
    client.type(compile_policy(text.encode(), "next.conf", "conf"))
    client.type(b"")
    return cast(dict[str, object], await host.handle(wire.PolicyLoad("next.conf"), client))


def dawdle(host: Host, name: str) -> asyncio.Event:
    """Let a domain drop what was cut only once the event is set."""
    detach, waiting = host.machines[name].detach, asyncio.Event()

    async def slow(channel: int) -> None:
        await asyncio.wait_for(waiting.wait(), 10)
        await detach(channel)

    host.machines[name].detach = slow  # type: ignore[method-assign] # a guest that dawdles
    return waiting


async def reached(host: Host, generation: int) -> None:
    """Wait until the policy of a generation is in force."""
    for _ in range(10_000):
        if host.monitor.mediator.decider.generation == generation:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"generation {generation} never came")


def test_a_change_during_a_load_is_made_of_the_policy_that_is_in_force(tmp_path: Path) -> None:
    """A load that still waits for a machine is not undone by a boolean that is set meanwhile."""

    async def scene(host: Host) -> None:
        await host.up()
        waiting = dawdle(host, "a")
        loading = asyncio.create_task(load_flask(host, UNBRIDGED))
        await reached(host, 2)
        change = wire.SetBooleans({"bridged": True})
        setting = asyncio.create_task(host.handle(change, FlaskClient(OWNER)))
        await reached(host, 3)
        with pytest.raises(Denied, match="no rule allows"):
            await host.monitor.bind("a", "b", port="again")
        waiting.set()
        loaded = await loading
        await setting
        assert host.node.setup.stack is cast(PolicyManager, host.monitor.mediator.decider).stack
        assert host.node.setup.stack.digest == loaded["policy"]

    play(tmp_path, scene, PERMITTED, LOCKDOWN)


def test_a_change_that_another_one_overtook_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made of a policy that is no longer in force never comes into force."""

    async def scene(host: Host) -> None:
        await host.up()
        loop, asked = asyncio.get_running_loop(), []

        def slow(stack: Stack, values: Mapping[str, bool]) -> Stack:
            asked.append(stack.digest)
            if len(asked) == 1:
                asyncio.run_coroutine_threadsafe(load_flask(host, UNBRIDGED), loop).result(9)
            return with_booleans(stack, values)

        monkeypatch.setattr("skerry.policy.source.with_booleans", slow)
        await host.handle(wire.SetBooleans({"bridged": True}), FlaskClient(OWNER))
        assert len(set(asked)) == 2
        assert host.node.setup.stack.digest == asked[1]
        with pytest.raises(Denied, match="no rule allows"):
            await host.monitor.bind("a", "b", port="again")

    play(tmp_path, scene, PERMITTED, LOCKDOWN)


def test_sessions_end_with_the_policy_that_let_them(tmp_path: Path) -> None:
    """Not only once every machine has dropped what was cut, which may take long."""

    async def scene(host: Host) -> None:
        await host.up()
        waiting = dawdle(host, "a")
        console = asyncio.create_task(host.handle(wire.Console("a"), Client("helper")))
        await ticks()
        loading = asyncio.create_task(load(host, APART))
        with pytest.raises(Denied, match="the policy changed"):
            await asyncio.wait_for(console, 5)
        assert not loading.done()
        waiting.set()
        assert (await loading)["sessions_cut"] == 1

    play(tmp_path, scene)


def test_nothing_is_read_for_whom_the_policy_does_not_let(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that is costly to read costs nothing before its sender is asked; a record says so.

    The control: for the one who may, it is read.
    """
    read: list[str] = []

    def counting(stack: Stack, untrusted: bytes, file: str) -> Stack:
        read.append(file)
        return with_policy(stack, untrusted, file)

    async def scene(host: Host) -> None:
        await host.up()
        monkeypatch.setattr("skerry.policy.source.with_policy", counting)
        with pytest.raises(Denied, match="only the bootstrap label"):
            await load(host, POLICY, "helper")
        assert read == []
        assert host.audit.events("deny")[-1]["change"] == "next.toml"
        await load(host, POLICY)
        assert read == ["next.toml"]

    play(tmp_path, scene)


def test_an_alarm_ends_its_domains_though_the_trail_does_not_answer(tmp_path: Path) -> None:
    """Its booleans wait for the disk; its ends, like every end, do not."""

    async def scene(host: Host) -> None:
        await host.up()
        host.audit.gate = asyncio.Event()
        raising = asyncio.create_task(host.handle(wire.RaiseAlarm("lockdown"), FlaskClient(OWNER)))
        await asyncio.wait_for(host.monitor.domain("c").gone.wait(), 5)
        assert not raising.done()
        host.audit.gate.set()
        done = cast(dict[str, object], await raising)
        assert (done["generation"], done["kept"]) == (2, 0)
        assert done["evicted"] == [{"domain": "c", "why": "the alarm lockdown"}]

    play(tmp_path, scene, PERMITTED, LOCKDOWN)
