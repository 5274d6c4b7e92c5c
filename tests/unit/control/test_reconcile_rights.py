"""`up` on a running system: who may, what he must have signed, and how much he may send."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from skerry.control import calls
from skerry.control.calls import MAX_UPLOADS
from skerry.control.server import Session
from skerry.errors import Denied, InputError, LimitReached, StateError, WireError
from skerry.monitor.domain import State
from skerry.node.changing import Adoption
from skerry.policy.signature import new_key, public_key, sign
from skerry.system.load import MAX_FILE
from skerry.system.model import System
from skerry.wire import control as wire
from skerry.wire.system_files import (
    KeyFile,
    PolicyFile,
    SystemFiles,
    decode_files,
    encode_files,
)
from skerry.xsm.explain import Refused
from tests.support.reconciling import (
    ALONE,
    APART,
    HELPER,
    MORE,
    OPERATED,
    Caller,
    ports,
    states,
    up,
)
from tests.unit.control.test_calls import (
    POLICY,
    SYSTEM,
    Client,
    Host,
    load,
    play,
    ticks,
)

SHARING = "[node]\nshare-templates-across-labels = true\n"


def test_who_may_not_load_a_policy_changes_nothing_of_what_the_owner_fixed(
    tmp_path: Path,
) -> None:
    """Policy, operators, limits, assertions, alarms, definitions: refused before any step, and on
    record. The control: the owner may."""

    async def scene(host: Host) -> None:
        await host.up()
        wider = APART.replace('"1.0"', '"1.1"')
        for what, new, policy in (
            ("the policy", system, wider),
            ("operators", system + '"uid:4000001" = "op"\n', APART),
            ("limits", system + "[limits]\ndomains = 3\n", APART),
            ("share-templates-across-labels", system + SHARING, APART),
            ("alarms", system + '[alarm.x]\nstop = ["a"]\n', APART),
            ("assertions", system + '[[assert]]\nnever = "a -> z"\n', APART),
            ("services", system + '[services.x]\noffered-by = "red"\n', APART),
            ("accept-missing", system + '[jail]\naccept-missing = ["uid"]\n', APART),
            ("the name", system.replace('name = "calls"', 'name = "other"'), APART),
            ("the definition of c", system + MORE + "autostart = false\n", APART),
        ):
            with pytest.raises(Denied, match="bootstrap"):
                await up(host, new + "\n", policy, uid=HELPER)
            event, fields = host.audit.records[-1]
            assert (event, fields["change"]) == ("deny", what)
            assert (await up(host, new, policy, dry_run=True)).answer["changed"] is True
        assert set(states(host).values()) == {"running"}
        assert host.node.setup.system.name == "calls"
        result = await up(host, system.replace('name = "calls"', 'name = "other"'), APART)
        assert result.refused == []
        assert host.node.setup.system.name == "other"

    isolated = MORE.replace("domains.c", "domains.z").replace('"red"', '"blue"')
    system = OPERATED.replace("[operators]", isolated + "[operators]")
    play(tmp_path, scene, APART, system)


def test_an_operator_may_what_each_step_lets_him(tmp_path: Path) -> None:
    """Without the right to load a policy he adds a domain that he may start, and its channel; one
    that he may not start is a definition, and refused as a whole."""

    async def scene(host: Host) -> None:
        await host.up()
        channel = '[[channels]]\nkind = "stream"\nfrom = "a"\nto = "c"\nname = "more"\n'
        more = MORE.replace('"red"', '"helper"') + channel
        result = await up(host, OPERATED + more, APART, uid=HELPER)
        assert result.refused == []
        assert set(ports(host)) == {"orders", "more"}
        blue = MORE.replace("domains.c", "domains.d").replace('"red"', '"blue"')
        with pytest.raises(Denied):
            await up(host, OPERATED + more + blue, APART, uid=HELPER)
        assert "d" not in host.node.setup.system.domains
        await up(host, OPERATED, APART, uid=HELPER)  # taking away asks nobody
        assert states(host) == {"a": "running", "b": "running"}

    play(tmp_path, scene, APART, OPERATED)


def test_a_restart_that_would_be_refused_leaves_the_domain_as_it_is(tmp_path: Path) -> None:
    """It is not stopped for nothing; the refusal is on record, and the old definition stays."""

    async def scene(host: Host) -> None:
        await host.up()
        domain = host.monitor.domain("b")
        new = system.replace("[domains.b]", "[domains.b]\ncpus = 2")
        result = await up(host, new, APART, uid=HELPER)
        assert result.refused == ["restart b"]
        assert host.monitor.domain("b") is domain
        assert domain.state is State.RUNNING
        assert host.node.setup.system.domains["b"].cpus == 1
        assert ("deny", "b") in [(e, fields.get("what")) for e, fields in host.audit.records]
        assert (await up(host, new, APART)).refused == []
        assert host.node.setup.system.domains["b"].cpus == 2

    system = ALONE.replace('[domains.b]\nlabel = "red"', '[domains.b]\nlabel = "blue"')
    system += OPERATED[OPERATED.index("[operators]") :]
    play(tmp_path, scene, APART, system)


def test_nobody_writes_himself_out_of_the_operators(tmp_path: Path) -> None:
    """Nobody could put him back; the owner is always one of them."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(StateError, match="does not name uid 4000000"):
            await up(host, SYSTEM, uid=HELPER)
        told: list[set[int]] = []
        host.calls.reconciler.operators_changed = lambda uids: told.append(set(uids))
        await up(host, SYSTEM)
        assert told == [{HELPER}]
        assert set(host.node.setup.operators) == {os.getuid()}

    play(tmp_path, scene, system=OPERATED)


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    """The second is told so at once; a call that is still being sent holds nobody off."""

    async def scene(host: Host) -> None:
        await host.up()
        half = Caller(os.getuid())
        half.type(b"begun")
        waiting = asyncio.create_task(host.handle(wire.Reconcile(), half))
        await ticks()
        first = asyncio.create_task(up(host, SYSTEM + MORE))
        await ticks(1)
        with pytest.raises(StateError, match="another `up`"):
            await up(host, ALONE)
        assert (await first).refused == []
        half.type(None)
        with pytest.raises(WireError, match="malformed"):
            await waiting

    play(tmp_path, scene)


def test_an_operator_sends_only_so_many_systems_at_once(tmp_path: Path) -> None:
    """What waits in memory is bounded; another operator is not held off, nor is a later call."""

    async def scene(host: Host) -> None:
        await host.up()
        half = [Caller(HELPER) for _ in range(MAX_UPLOADS)]
        calls = [asyncio.create_task(host.handle(wire.Reconcile(), client)) for client in half]
        await ticks()
        with pytest.raises(Denied, match="4 systems already"):
            await up(host, OPERATED, uid=HELPER)
        assert (await up(host, OPERATED)).refused == []
        for client in half:
            client.type(None)
        await asyncio.gather(*calls, return_exceptions=True)
        assert (await up(host, OPERATED, uid=HELPER)).refused == []

    play(tmp_path, scene, system=OPERATED)


def test_a_policy_is_not_taken_from_who_may_not_load_one(tmp_path: Path) -> None:
    """He is refused before anything of it is kept; the owner's is waited for (control)."""

    async def scene(host: Host) -> None:
        await host.up()
        for uid in (HELPER, os.getuid()):
            caller = Caller(uid)
            loading = asyncio.create_task(host.handle(wire.PolicyLoad("p.toml"), caller))
            await ticks()
            assert loading.done() is (uid == HELPER)
            caller.type(POLICY.encode())
            caller.type(b"")
            if uid == HELPER:
                with pytest.raises(Refused):
                    await loading
                assert host.audit.events("deny")[-1]["change"] == "p.toml"
            else:
                await loading

    play(tmp_path, scene, system=OPERATED)


@pytest.mark.parametrize("call", [wire.PolicyLoad("p.toml"), wire.Reconcile()])
def test_what_is_sent_too_slowly_is_not_waited_for(
    call: wire.Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call fails, and its place is free for another; loads are counted like systems."""
    monkeypatch.setattr(calls, "UPLOAD_S", 0.05)

    async def scene(host: Host) -> None:
        await host.up()
        half = [Caller(os.getuid()) for _ in range(MAX_UPLOADS)]
        for client in half:
            client.type(b"begun")
        sending = [asyncio.create_task(host.handle(call, client)) for client in half]
        await ticks()
        with pytest.raises(LimitReached, match="already"):
            await host.handle(call, Caller(os.getuid()))
        for error in await asyncio.gather(*sending, return_exceptions=True):
            assert isinstance(error, WireError)
            assert "not sent in" in str(error)
        assert (await up(host, OPERATED)).refused == []

    play(tmp_path, scene, system=OPERATED)


def test_a_system_file_that_is_sent_has_the_bound_of_one_on_disk(tmp_path: Path) -> None:
    """A longer one is refused unread; the longest is read."""

    async def scene(host: Host) -> None:
        await host.up()
        longest = OPERATED + "#" * (MAX_FILE - len(OPERATED))
        assert (await up(host, longest)).refused == []
        with pytest.raises(InputError, match=f"longer than {MAX_FILE} bytes"):
            await up(host, longest + "#")

    play(tmp_path, scene, system=OPERATED)


def test_a_client_that_goes_stops_no_step(tmp_path: Path) -> None:
    """What was begun is finished; nobody is told."""

    class Gone(Caller):
        async def output(self, stream: str, data: bytes) -> None:
            raise WireError("the client is gone")

    async def scene(host: Host) -> None:
        await host.up()
        path = host.node.setup.system.path
        policy = PolicyFile(str(path.parent / "policy.toml"), POLICY.encode())
        gone = Gone(os.getuid())
        gone.type(encode_files(SystemFiles(str(path), SYSTEM + MORE, (policy,))))
        gone.type(b"")
        await host.calls.handle(wire.Reconcile(), cast(Session, gone))
        assert states(host)["c"] == "running"

    play(tmp_path, scene)


def test_files_that_are_not_those_of_the_system_are_refused(tmp_path: Path) -> None:
    """The node reads none itself; what is no message at all is malformed."""

    async def scene(host: Host) -> None:
        await host.up()
        path = host.node.setup.system.path
        caller = Caller(os.getuid())
        caller.type(encode_files(SystemFiles(str(path), SYSTEM)))
        caller.type(b"")
        with pytest.raises(InputError, match=r"without .*policy\.toml"):
            await host.handle(wire.Reconcile(), caller)

    play(tmp_path, scene)
    for untrusted in (b"", b"\x91" * 100_000, b"\x81\xa4path\x01", b"\xc1"):
        with pytest.raises(WireError, match="malformed"):
            decode_files(untrusted)


def test_a_restart_of_the_service_is_for_those_who_may_load_a_policy(tmp_path: Path) -> None:
    """The service is told only then."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(Denied):
            await host.handle(wire.Restart(), Client("helper"))
        assert not host.calls.restart.is_set()
        await host.handle(wire.Restart(), Client("op"))
        assert host.calls.restart.is_set()

    play(tmp_path, scene)


def test_a_channel_between_domains_that_the_caller_may_not_see_is_not_declared(
    tmp_path: Path,
) -> None:
    """Also if the domains' labels let it be; who may see both declares it."""

    async def scene(host: Host) -> None:
        await host.up()
        channel = '[[channels]]\nkind = "stream"\nfrom = "x"\nto = "y"\nname = "more"\n'
        result = await up(host, system + channel, APART, uid=HELPER)
        assert result.refused == ["bind x ↔ y (more)"]
        assert "more" not in {spec.name for spec in host.node.setup.system.channels}
        assert (await up(host, system + channel, APART)).refused == []
        assert "more" in ports(host)

    two = [MORE.replace("domains.c", f"domains.{n}").replace('"red"', '"blue"') for n in "xy"]
    system = OPERATED + "".join(two)
    play(tmp_path, scene, APART, system)


KEYS = [new_key() for _ in range(2)]


def signed_files(host: Host, key: int | None, policy: str, by: int, endorsed: int | None) -> bytes:
    """Return a system whose key is one of `KEYS`, or none, its policy signed by one of them."""
    path = host.node.setup.system.path
    system = SYSTEM if key is None else f'policy-key = "key.pub"\n{SYSTEM}'
    content = policy.encode()
    signature = sign(KEYS[by][0], content, "key")
    named = None
    if key is not None:
        public = KEYS[key][1]
        by_old = b"" if endorsed is None else sign(KEYS[endorsed][0], public, "key")
        named = KeyFile(public, by_old)
    file = PolicyFile(str(path.parent / "policy.toml"), content, signature)
    return encode_files(SystemFiles(str(path), system, (file,), named))


async def up_signed(
    host: Host, key: int | None, policy: str = POLICY, by: int = 0, endorsed: int | None = None
) -> Mapping[str, Any]:
    """Give the node such a system."""
    caller = Caller(os.getuid())
    caller.type(signed_files(host, key, policy, by, endorsed))
    caller.type(b"")
    return cast(Mapping[str, Any], await host.handle(wire.Reconcile(), caller))


def test_a_key_in_force_is_required_of_every_policy_and_of_the_next_key(tmp_path: Path) -> None:
    """It comes by the owner's decision; then no load and no file passes without its signature, it
    can't be dropped, and another one follows only if this one signed it."""

    async def scene(host: Host) -> None:
        await host.up()
        newer = POLICY.replace('"1.0"', '"1.1"')
        with pytest.raises(InputError, match="does not verify"):
            await up_signed(host, 0, by=1)
        assert (await up_signed(host, 0))["refused"] == []
        with pytest.raises(InputError, match="not signed"):
            await load(host, newer)
        assert host.audit.records[-1][0] == "deny"
        assert "POLICY-UNSIGNED" in str(host.audit.records[-1][1])
        done = await load(host, newer, signature=sign(KEYS[0][0], newer.encode(), "key"))
        assert done["generation"] == 2
        with pytest.raises(InputError, match="names no policy-key"):
            await up_signed(host, None)
        assert "POLICY-UNSIGNED" in str(host.audit.records[-1][1])
        with pytest.raises(InputError, match=r"key\.pub: not signed"):
            await up_signed(host, 1, by=1)
        with pytest.raises(InputError, match=r"key\.pub.*does not verify"):
            await up_signed(host, 1, by=1, endorsed=1)
        assert host.node.setup.policy_key == public_key(KEYS[0][1], "")
        assert (await up_signed(host, 1, by=1, endorsed=0))["refused"] == []
        assert host.node.setup.policy_key == public_key(KEYS[1][1], "")

    play(tmp_path, scene)


async def up_imaged(host: Host, key: int | None, endorsed: int | None = None) -> Any:
    """Give the node a system whose image key is one of `KEYS`, or none, signed by another one."""
    path = host.node.setup.system.path
    system = SYSTEM if key is None else f'image-key = "images.pub"\n{SYSTEM}'
    named = None
    if key is not None:
        public = KEYS[key][1]
        by_old = b"" if endorsed is None else sign(KEYS[endorsed][0], public, "key")
        named = KeyFile(public, by_old)
    file = PolicyFile(str(path.parent / "policy.toml"), POLICY.encode())
    caller = Caller(os.getuid())
    caller.type(encode_files(SystemFiles(str(path), system, (file,), None, named)))
    caller.type(b"")
    return await host.handle(wire.Reconcile(), caller)


def test_the_key_of_the_images_is_followed_only_by_one_that_it_signed(tmp_path: Path) -> None:
    """It can't be dropped either; a refused file leaves it as it was."""

    async def scene(host: Host) -> None:
        await host.up()
        assert (await up_imaged(host, 0))["refused"] == []
        assert host.node.setup.system.image_signer == public_key(KEYS[0][1], "")
        with pytest.raises(InputError, match="names no image-key"):
            await up_imaged(host, None)
        with pytest.raises(InputError, match=r"images\.pub: not signed"):
            await up_imaged(host, 1)
        with pytest.raises(InputError, match=r"images\.pub.*does not verify"):
            await up_imaged(host, 1, endorsed=1)
        assert host.node.setup.system.image_signer == public_key(KEYS[0][1], "")
        assert (await up_imaged(host, 1, endorsed=0))["refused"] == []
        assert host.node.setup.system.image_signer == public_key(KEYS[1][1], "")

    play(tmp_path, scene)


def test_what_was_prepared_counts_only_once_the_file_is_in_force(tmp_path: Path) -> None:
    """A missing layer that a file accepts is accepted no earlier, and never if it is refused."""

    async def scene(host: Host) -> None:
        await host.up()
        taken: list[tuple[str, ...]] = []

        async def prepare(system: System, _: object) -> Callable[[], None]:
            return lambda: taken.append(system.accept_missing)

        host.calls.reconciler._prepare = prepare
        accepting = OPERATED + '[jail]\naccept-missing = ["uid"]\n'
        adopt = host.node.adopt

        async def refuse(adopting: Adoption) -> None:
            raise Denied("the disk is full")

        host.node.adopt = refuse  # type: ignore[method-assign]
        assert (await up(host, accepting)).refused == ["the policy and what the owner fixed"]
        assert taken == []
        host.node.adopt = adopt  # type: ignore[method-assign]
        assert (await up(host, accepting)).refused == []
        assert taken == [("uid",)]

    play(tmp_path, scene, system=OPERATED)
