"""What each call on the control socket does. The peer's label comes from its credentials."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec

from skerry.control.server import Session
from skerry.errors import InputError, LimitReached, PolicyError, Problem, StateError, WireError
from skerry.label import Label
from skerry.monitor.domain import State
from skerry.monitor.protocols import COLD
from skerry.monitor.table import Channel
from skerry.node import paths
from skerry.node.disks import list_disks, release_disk
from skerry.node.guest import guest_of
from skerry.node.node import Node
from skerry.node.on_record import bind_on_record
from skerry.node.reconcile import Prepare, Reconciler
from skerry.node.replica import replication_of
from skerry.node.rows import channel_row
from skerry.node.statements import make_statement
from skerry.policy.load import MAX_POLICY_BYTES
from skerry.policy.source import NewBooleans, NewPolicy, policy_info
from skerry.wire import control as wire
from skerry.wire.system_files import MAX_SYSTEM_BYTES, decode_files

_T = TypeVar("_T")

MAX_UPLOADS = 4
"""Systems that one operator may be sending at once, and policies; a further one is refused until
one is sent."""

UPLOAD_S = 60.0
"""Seconds in which a system or policy must have been sent; after that its call fails."""

MAX_STDIN = 1 << 20
"""Most bytes of standard input that `exec` hands to a command; more is refused."""


class Calls:
    """Carries out calls on one node.

    `ended` is set when a `down` has stopped everything, `restart` when another process of the
    service shall take over.
    """

    def __init__(self, node: Node, prepare: Prepare | None = None) -> None:
        self.ended = asyncio.Event()
        self.restart = asyncio.Event()
        self.reconciler = Reconciler(node, prepare)
        self._node = node
        self._uploads: Counter[tuple[int, str]] = Counter()

    async def handle(self, call: wire.Call, session: Session) -> object:
        """Do what the call says and return its result. Raises `SkerryError`."""
        node, monitor, operator = self._node, self._node.monitor, session.operator
        for role in ("domain", "source", "sink"):
            if hasattr(call, role) and getattr(call, role) not in monitor.resources:
                node.known(getattr(call, role), or_resource=role == "sink")
        match call:
            case wire.Ps():
                return await node.ps(operator)
            case wire.Health():
                return node.health()
            case wire.Replica():
                return await replication_of(node, session.uid).status()
            case wire.ReplicaRecords(after):
                return await replication_of(node, session.uid).records(after)
            case wire.Channels():
                return await node.channels(operator)
            case wire.PolicyShow():
                return await asyncio.to_thread(self._policy)  # a large one takes its time
            case wire.PolicyLoad():
                return await self._load(call, session)
            case wire.SetBooleans(values, evict, dry_run):
                what = " ".join(f"{name}={int(value)}" for name, value in sorted(values.items()))
                return await node.load(
                    "policy_setbool",
                    operator,
                    NewBooleans(values),
                    what=what,
                    evict=evict,
                    dry_run=dry_run,
                )
            case wire.RaiseAlarm(name):
                return await node.alarm(operator, name)
            case wire.Start(domain):
                return await self._start(session, domain)
            case wire.Stop(domain, deadline_s):
                return {"domain": domain, "reason": await node.stop(domain, deadline_s)}
            case wire.Kill(domain):
                await node.kill(domain)
            case wire.Pause(domain):
                await monitor.pause(operator, domain)
            case wire.Resume(domain):
                await monitor.resume(operator, domain)
            case wire.Relabel(domain, label):
                return await node.relabel(operator, domain, label)
            case wire.Connect():
                channel = await self._connect(operator, call)
                return channel_row(channel, channel.since)
            case wire.Cut(number):
                is_memory = monitor.channels.get(number).kind == "memory"
                drained = monitor.cut(number)
                if is_memory:  # which only the machines can give up
                    await monitor.settle()
                return {"channel": number, "drained": drained}
            case wire.Disks():
                return await list_disks(node, operator)
            case wire.ReleaseDisk(disk):
                return await release_disk(node, operator, disk)
            case wire.ForgetDisk(disk):
                return await release_disk(node, operator, disk, gone=True)
            case wire.Exec():
                return await self._exec(call, session)
            case wire.Console():
                await self._console(call, session)
            case wire.Down(deadline_s):
                return await self._down(deadline_s)
            case wire.Reconcile():
                return await self._reconcile(call, session)
            case wire.TpmStatement(domain, nonce):
                key = paths.statement_key()
                return msgspec.to_builtins(await make_statement(node, operator, domain, nonce, key))
            case wire.Restart():
                return await self._restart(operator)
        return None

    def _policy(self) -> dict[str, object]:
        decider = self._node.monitor.mediator.decider
        return {"generation": decider.generation, **policy_info(self._node.setup.policy)}

    async def _load(self, call: wire.PolicyLoad, session: Session) -> dict[str, object]:
        # Before anything is kept for who may not load, and again once it is here.
        await self._node.require("policy_load", session.operator, call.file)
        untrusted = await self._upload(session, "policies", MAX_POLICY_BYTES)
        try:
            return await self._node.load(
                "policy_load",
                session.operator,
                NewPolicy(call.file, untrusted, call.signature, call.assertions),
                what=call.file,
                evict=call.evict,
                dry_run=call.dry_run,
            )
        except PolicyError as error:
            self._node.monitor.mediator.failed("policy_load", error, file=call.file)
            raise

    async def _start(self, session: Session, name: str) -> dict[str, object]:
        started = await self._node.start(session.operator, name)
        refused = [
            {"what": refusal.what, "text": refusal.text, "message": refusal.error.message}
            for refusal in started.refused
        ]
        return {
            "domain": name,
            "state": self._node.monitor.domain(name).state.value,
            "bound": [channel_row(channel, channel.since) for channel in started.bound],
            "refused": refused,
        }

    async def _down(self, deadline_s: float) -> dict[str, object]:
        stopped = await self._node.down(deadline_s)
        self.ended.set()
        return {"stopped": stopped}

    async def _reconcile(self, call: wire.Reconcile, session: Session) -> dict[str, object]:
        """Reconcile, and tell the client of each step; if it goes, the steps go on."""
        untrusted = await self._upload(session, "systems", MAX_SYSTEM_BYTES)
        lines: asyncio.Queue[bytes] = asyncio.Queue()

        async def tell() -> None:
            with contextlib.suppress(WireError):
                while line := await lines.get():
                    await session.output("progress", line)

        telling = asyncio.ensure_future(tell())
        try:
            return await self.reconciler.run(
                session.uid,
                decode_files(untrusted),
                lambda event: lines.put_nowait(json.dumps(event).encode() + b"\n"),
                evict=call.evict,
                dry_run=call.dry_run,
            )
        except PolicyError as error:
            self._node.monitor.mediator.failed("policy_load", error)
            raise
        finally:
            lines.put_nowait(b"")
            await telling

    async def _connect(self, operator: Label, call: wire.Connect) -> Channel:
        if call.overflow == "drop" and not call.one_way:
            raise StateError("a two-way channel drops nothing", fix="give one-way as well")
        resource = self._node.monitor.resources.get(call.sink)
        if resource is not None and call.one_way and resource.kind != "disk":
            raise StateError(f"{call.sink} is no disk: it is not only read", fix="leave it out")
        if resource is not None and resource.kind in COLD:
            raise StateError(
                f"a domain has {call.sink} from its start on or not at all",
                fix=f"name it in the `uses` of {call.source} in the system file",
            )
        if resource is None:
            if (call.kind == "memory") is not bool(call.size):
                raise StateError("a memory has a size, and nothing else does", fix="give --size")
            if call.size and not wire.is_memory_size(call.size):
                wrong = f"{call.size} bytes are none: {wire.MEMORY_SIZES}"
                raise InputError([Problem("--size", 0, wrong)])
            if call.kind == "link" and call.one_way:
                raise StateError("a link goes both ways", fix="a stream can be one-way")
        return await bind_on_record(
            self._node.monitor.mediator,
            partial(self._node.monitor.connect, operator),
            call.source,
            call.sink,
            call.kind if resource is None else resource.kind,
            call.port,
            call.one_way,
            for_s=call.for_s,
            overflow=call.overflow,
            size=call.size,
        )

    async def _upload(self, session: Session, what: str, most: int) -> bytes:
        """Collect what an operator sends. Raises `LimitReached`, `WireError` if it takes long."""
        sent = session.uid, what
        if self._uploads[sent] >= MAX_UPLOADS:
            full = f"you are sending {MAX_UPLOADS} {what} already"
            raise LimitReached(full, fix="end one of these calls")
        self._uploads[sent] += 1
        try:
            async with asyncio.timeout(UPLOAD_S):
                return await _collect(session, most, "give the policies in a shorter form")
        except TimeoutError:
            raise WireError(f"it was not sent in {UPLOAD_S:g} s", fix="send it again") from None
        finally:
            self._uploads[sent] -= 1

    async def _restart(self, operator: Label) -> dict[str, object]:
        parties = {"operator": operator, "security": self._node.security()}
        about = {"change": "the service is started anew"}
        grant = await self._node.monitor.mediator.permit("policy_load", lambda: parties, about)
        self.restart.set()
        return {"record": grant.record}

    async def _exec(self, call: wire.Exec, session: Session) -> dict[str, object]:
        monitor = self._node.monitor
        domain = monitor.domain(call.domain)
        domain.require({State.RUNNING}, "run a command in it")
        # All input first: nothing may come between the answer and the session that it opens.
        stdin = b""
        if call.stdin:
            stdin = await _collect(session, MAX_STDIN, "send larger data over a channel")
        await monitor.use("domain_exec", session.operator, call.domain, command=list(call.argv))
        domain.require({State.RUNNING}, "run a command in it")
        if not self._node.has_agent(call.domain):
            raise StateError(
                f"domain {call.domain} boots its own disk: no agent of ours runs commands in it",
                fix=f"use its console: `skerry console {call.domain}`",
            )

        async def work() -> int:
            guest = guest_of(domain)
            await self._node.answered(call.domain, call.wait_s)
            return await guest.agent.run(call.argv, stdin=stdin, output=session.output)

        code = await self._session(call.domain, "domain_exec", session, work(), session.gone())
        return {"exit_code": code}

    async def _console(self, call: wire.Console, session: Session) -> None:
        domain = self._node.monitor.domain(call.domain)
        hook = await self._node.open_console(session.operator, domain, writes=not call.read_only)
        console = guest_of(domain).console
        reading = console.subscribe()
        before = console.untrusted_text

        async def show() -> None:
            await session.output("console", before)
            while True:
                lost, untrusted = await reading.read()
                if not untrusted:
                    await domain.gone.wait()  # which cuts the session with its reason
                    return
                if lost:
                    note = f"\r\n[{lost} bytes were not shown]\r\n"
                    await session.output("console", note.encode())
                await session.output("console", untrusted)

        async def type_in() -> None:
            async for keys in session.inputs():
                if call.read_only:
                    raise StateError("this console was opened only to be read")
                console.write(keys)

        try:
            await self._session(call.domain, hook, session, show(), type_in())
        finally:
            reading.close()

    async def _session(
        self,
        name: str,
        hook: str,
        session: Session,
        work: Coroutine[Any, Any, _T],
        client: Coroutine[Any, Any, None],
    ) -> _T:
        """Do the work until it is done, the session is cut, or `client` ends: it has gone.

        Awaited without a step between it and the grant, it is open before a relabel can come.
        """
        try:
            doing = _while_here(work, client)
            return await self._node.sessions.run(name, hook, session.operator, doing)
        finally:
            work.close()
            client.close()


async def _while_here(work: Coroutine[Any, Any, _T], client: Coroutine[Any, Any, None]) -> _T:
    """Do the work unless the client goes first, which raises `WireError`."""
    gone, doing = asyncio.ensure_future(client), asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, doing}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            await gone
            raise WireError("the client has gone")
        return await doing
    finally:
        for task in (gone, doing):
            task.cancel()
        await asyncio.gather(gone, doing, return_exceptions=True)


async def _collect(session: Session, most: int, fix: str) -> bytes:
    """Collect what a client sends after its call, up to its end. Raises `LimitReached`."""
    untrusted = bytearray()
    async for piece in session.inputs():
        if not piece:
            break
        untrusted += piece
        if len(untrusted) > most:
            raise LimitReached(f"the input is over the limit of {most} bytes", fix=fix)
    return bytes(untrusted)
