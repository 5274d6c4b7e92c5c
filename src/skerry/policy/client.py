"""The policy manager as a node sees it (`monitor.Decider`), when it is a process of its own.

The rules this module keeps (law 4): the manager decides, and this side keeps what it needs to be
restarted: the policy's sources, the generation and the history, which is on disk before an
exchange counts. A manager that is gone or does not answer denies every new question at once; what
is cached stays valid for its generation, whole verdicts of hooks whose answers may be cached and
nothing of the Chinese Wall. An answer is taken in its form only, and for the policy that was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, Protocol

from skerry.errors import DeciderUnavailable, Denied, SkerryError, StaleGeneration
from skerry.label import Label
from skerry.policy import link as linking
from skerry.policy import messages
from skerry.policy.candidate import RemoteCandidate
from skerry.policy.engine import remembers
from skerry.policy.history import HistoryStore, Keeper, entries_of, may_grow, merged
from skerry.policy.link import Link, Reply
from skerry.policy.messages import (
    Begin,
    Exchanged,
    Failure,
    Hooked,
    Install,
    Question,
    Started,
    Touch,
    Touched,
)
from skerry.policy.replies import ask, broken, denial, require_made
from skerry.policy.source import Policy, Source
from skerry.policy.verdicts import Key, Verdicts, key_of
from skerry.policy.wellformed import plain, well_formed
from skerry.xsm.explain import refuse
from skerry.xsm.request import Verdict
from skerry.xsm.stack import History, Stack

FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 5.0
"""How long a lost manager is waited for before the next is started; it doubles up to the last."""

HEALTHY_S = 10.0
"""After so long in service the pause begins small again."""

State = Literal["running", "frozen", "lost"]


class Process(Protocol):
    """A manager's process."""

    def kill(self) -> None:
        """End it at once; nothing happens if it has ended."""


Start = Callable[[], Awaitable[tuple[socket.socket, Process]]]
"""Starts a process and returns the socket to it. Raises `SkerryError`."""

Notice = Callable[[str, Mapping[str, object]], object]
"""Takes `manager-lost` or `manager-back` with its fields, for the trail."""


class RemoteManager:
    """Decides through a process that it starts, and starts again when it is lost."""

    def __init__(
        self,
        start: Start,
        policy: Policy,
        store: HistoryStore,
        notice: Notice,
        generation: int = 1,
        answer_s: float = linking.ANSWER_S,
    ) -> None:
        """Raises `PolicyError` if the history kept is damaged. `begin` it before it is asked."""
        self.generation = generation
        self.held = ""
        """Why nothing is decided now, though there is a manager; empty: it is."""
        self._start = start
        self._policy = policy
        self._keeper = Keeper(store)
        self._notice = notice
        self._answer_s = answer_s
        self._verdicts = Verdicts()
        self._candidates = 0
        self._link: Link | None = None
        self._process: Process | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._pause_s = FIRST_PAUSE_S
        self._since = 0.0
        self.history: History = self._keeper.history

    @property
    def stack(self) -> Stack:
        """The modules in force, for what is not decided: labels and their names."""
        return self._policy.stack

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the digests of the modules in force."""
        return self.stack.digest

    @property
    def state(self) -> State:
        """Whether new questions are answered; `lost` while another process is being started."""
        if self._link is None:
            return "lost"
        return "frozen" if self._link.is_frozen else "running"

    @property
    def link(self) -> Link:
        """The way to the process. Raises `DeciderUnavailable` while there is none."""
        if self._link is None:
            raise DeciderUnavailable("the policy manager is gone; another one is being started")
        return self._link

    async def begin(self) -> None:
        """Start the process and give it what is in force. Raises `SkerryError`."""
        sock, process = await self._start()
        link = Link(sock, lambda why: self._lost(link, why), self._frozen, self._answer_s)
        try:
            history = messages.plain(self.history)
            reply = await link.order(Begin(self.generation, self._policy.sources, history))
            require_made(link, reply, self.generation, self.stack)
            if link.ended:  # by what came after its answer, in the same piece
                raise DeciderUnavailable(f"the policy manager is gone: {link.ended}")
        except BaseException:
            link.end("it did not begin")
            process.kill()
            raise
        self._link, self._process = link, process
        self._since = asyncio.get_running_loop().time()

    async def resume(self) -> None:
        """Begin as `begin` does, but for a failure: then it counts as lost, and is tried again."""
        try:
            await self.begin()
        except Exception as error:  # whatever it was, it is tried again
            why = error.message if isinstance(error, SkerryError) else f"{error!r:.200}"
            self._notice("manager-lost", {"why": why, "generation": self.generation})
            self._reviving = asyncio.get_running_loop().create_task(self._revive())

    async def close(self) -> None:
        """End the process and start no other."""
        link, self._link = self._link, None
        if self._reviving is not None:
            self._reviving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reviving
        if link is not None:
            link.end("closed")
        if self._process is not None:
            self._process.kill()

    def _lost(self, link: Link, why: str) -> None:
        if link is not self._link:
            return
        self._link = None
        if self._process is not None:
            self._process.kill()
        self._notice("manager-lost", {"why": why, "generation": self.generation})
        loop = asyncio.get_running_loop()
        if loop.time() - self._since > HEALTHY_S:
            self._pause_s = FIRST_PAUSE_S
        self._reviving = loop.create_task(self._revive())

    async def _revive(self) -> None:
        tries = 0
        while self._link is None:
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
            tries += 1
            with contextlib.suppress(Exception):  # whatever it was, it is tried again
                await self.begin()
        self._notice("manager-back", {"generation": self.generation, "tries": tries})

    def _frozen(self, frozen: bool) -> None:
        why = {"why": "it does not answer"} if frozen else {"tries": 0}
        event = "manager-lost" if frozen else "manager-back"
        self._notice(event, {**why, "generation": self.generation})

    def candidate(
        self, stack: Stack, sources: Sequence[Source] = (), *, loading: bool = False
    ) -> RemoteCandidate:
        """Return a policy that could come into force next: it answers, but decides nothing.

        One that is `loading` takes the place of the one before that was, and of no other's.
        Raises `DeciderUnavailable` while there is no manager.
        """
        self._candidates += 1
        policy = Policy(tuple(sources), stack)
        number, generation = self._candidates, self.generation + 1
        return RemoteCandidate(
            self.link, number, generation, policy, self._policy, lambda: self.history, loading
        )

    async def remember(self, candidate: RemoteCandidate) -> None:
        """Save what the history will be under a candidate, so that no restart forgets it.

        Raises `DeciderUnavailable` or another `Denied` if it can't be saved.
        """
        stack, before = candidate.policy.stack, candidate.before
        await self._keeper.keep_carried(self, lambda now: stack.carry_history(now, before))

    def install(self, candidate: RemoteCandidate) -> int:
        """Bring a candidate into force, here at once and there before the next question.

        Raises `StaleGeneration` if another one came before it, `DeciderUnavailable` if the
        manager does not hold it any more.
        """
        if candidate.generation != self.generation + 1:
            raise StaleGeneration("another policy came into force meanwhile", fix="try again")
        link = self.link
        if candidate.link is not link or not candidate.made:
            raise DeciderUnavailable("the policy manager was restarted meanwhile", fix="try again")
        reply = link.order(Install(candidate.number))
        self.history = candidate.policy.stack.carry_history(self.history, candidate.before)
        self.generation = candidate.generation
        self._verdicts = candidate.verdicts
        self._policy = candidate.policy
        reply.add_done_callback(lambda done: self._installed(link, done, candidate))
        return self.generation

    def _installed(
        self, link: Link, done: asyncio.Future[Reply], candidate: RemoteCandidate
    ) -> None:
        """End a manager that has not the policy in force: the next one gets it."""
        try:
            require_made(link, done.result(), candidate.generation, candidate.policy.stack)
        except (Denied, asyncio.CancelledError):
            link.end("it did not take the policy")

    async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Decide a hook for these parties, without the Chinese Wall. Raises only `Denied`."""
        if self.held:
            raise DeciderUnavailable(self.held, fix="try again in a moment")
        key: Key = key_of(hook, parties)
        found = self._verdicts.get(key)
        if found is not None:
            return found
        verdict = await self._ask(Hooked(hook, dict(parties)))
        if verdict.generation == self.generation:
            self._verdicts.put(key, verdict)
        return verdict

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Decide the Chinese Wall question for a start beside these running domains."""
        return await self._ask(Started(label, running))

    async def admit_bind(self, *labels: Label) -> Verdict:
        """Decide the history question for an exchange among labels."""
        return await self._ask(Exchanged(labels))

    async def _ask(self, question: Question) -> Verdict:
        return await ask(self.link, 0, question, self.generation)

    @property
    def remembers(self) -> bool:
        """Whether a wall of the policy in force keeps a history."""
        return remembers(self.stack)

    async def touch(self, *labels: Label) -> None:
        """Remember, durably, that these exchange information. One alone: a start.

        Raises `Denied` if the wall was closed meanwhile, or if the history can't be saved; what
        was remembered stays remembered even then.
        """
        before = None if self.remembers else self.history  # else there is nothing to remember
        while before is not self.history:  # until nobody has learnt anything meanwhile
            before = self.history
            await self._touch(labels)

    async def _touch(self, labels: tuple[Label, ...]) -> None:
        link, generation, stack = self.link, self.generation, self.stack
        reply = await link.order(Touch(labels))
        if isinstance(reply, Failure):
            raise denial(reply)
        if not isinstance(reply, Touched) or not well_formed(
            Exchanged(labels), reply.verdict, generation
        ):
            raise broken(link)
        if not reply.verdict.allowed:
            raise refuse(plain(reply.verdict), subject=labels[0], target=labels[-1])
        if not may_grow(self.history, reply.touched, labels, stack):
            raise broken(link)
        self.history = merged(self.history, entries_of(reply.touched, labels))
        # Even if nothing changed here, what this exchange rests on may still be on its way to disk.
        await self._keeper.keep(lambda: self.history)
