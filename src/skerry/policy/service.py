"""The policy manager's process: one engine behind one socket (in a domain: `guest`).

The rules this module keeps: every order gets one answer, in order; whatever fails is told as a
denial, and a broken order or the end of the socket ends the process, which holds nothing that the
node does not have.

Run as a helper (`node.helpers`), with the socket as descriptor `SOCKET`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from skerry.errors import DeciderUnavailable, Denied, SkerryError, StaleGeneration, WireError
from skerry.policy import messages
from skerry.policy.engine import Edition, Engine
from skerry.policy.history import common
from skerry.policy.messages import (
    Answer,
    Answered,
    Ask,
    Begin,
    Exchanged,
    Failure,
    Hooked,
    Install,
    Made,
    Offered,
    Order,
    Propose,
    Question,
    Started,
    Touch,
    Touched,
)
from skerry.policy.source import Policy, Source, make_policy
from skerry.supervisor.spawn import PR_SET_DUMPABLE, prctl
from skerry.xsm.request import Verdict

SOCKET = 3
"""The number of the descriptor that leads to the node."""

MAX_CANDIDATES = 2
"""Candidates that are kept beside the one that is being loaded; the oldest makes room, and to ask
it is then a denial."""

_CHUNK = 1 << 18


class Service:
    """Answers orders; the first one must be `Begin`."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._policy: Policy | None = None
        self._candidates: dict[int, tuple[Edition, Policy]] = {}
        self._loading = 0

    def answer(self, order: Order) -> Answer:
        """Carry out one order. Never raises."""
        try:
            return Answer(order.number, self._answer(order.what))
        except Exception as error:
            return Answer(order.number, _failure(error))

    def _answer(self, what: object) -> Made | Answered | Touched:
        if isinstance(what, Begin):
            return self._begin(what)
        engine = self._engine
        if engine is None:
            raise DeciderUnavailable("the policy manager has no policy yet")
        match what:
            case Ask():
                edition = self._edition(engine, what.candidate)
                return Answered(tuple([_decide(edition, each) for each in what.questions]))
            case Touch():
                verdict = engine.touch(*what.labels)
                return Touched(verdict, common(engine.history, what.labels))
            case Propose():
                return self._propose(engine, what)
            case Install():
                edition = self._edition(engine, what.candidate)
                engine.install(edition)
                _, self._policy = self._candidates[what.candidate]
                self._candidates.clear()
                return Made(edition.generation, edition.stack.digest)
        raise WireError("no order")

    def _begin(self, begin: Begin) -> Made:
        policy = self._policy = make_policy(begin.sources)
        self._candidates.clear()
        self._engine = Engine(policy.stack, begin.history, begin.generation)
        return Made(begin.generation, policy.stack.digest)

    def _propose(self, engine: Engine, propose: Propose) -> Made:
        assert self._policy is not None  # made with the engine
        sources = self._policy.sources
        if len(propose.sources) != len(sources):
            raise WireError("a candidate has as many sources as the policy in force")
        wanted = [_whole(each, old) for each, old in zip(propose.sources, sources, strict=True)]
        policy = make_policy(wanted, self._policy)
        edition = engine.candidate(policy.stack)
        if propose.loading:
            self._candidates.pop(self._loading, None)
            self._loading = propose.candidate
        else:
            tried = sorted(self._candidates.keys() - {self._loading})
            for number in tried[: len(tried) + 1 - MAX_CANDIDATES]:
                del self._candidates[number]
        self._candidates[propose.candidate] = edition, policy
        return Made(edition.generation, policy.stack.digest)

    def _edition(self, engine: Engine, candidate: int) -> Edition:
        if not candidate:
            return engine.in_force
        try:
            return self._candidates[candidate][0]
        except KeyError:
            raise StaleGeneration("other policies were proposed meanwhile", fix="retry") from None


def _whole(offered: Offered, old: Source) -> Source:
    content = old.content if offered.content is None else offered.content
    return Source(offered.file, content, offered.booleans)


def _decide(edition: Edition, question: Question) -> tuple[Verdict | None, Failure | None]:
    try:
        match question:
            case Hooked():
                return edition.hook_verdict(question.hook, question.parties), None
            case Started():
                return edition.start_verdict(question.label, question.running), None
            case Exchanged():
                return edition.bind_verdict(*question.labels), None
    except Exception as error:
        return None, _failure(error)


def _failure(error: Exception) -> Failure:
    most = messages.MAX_WORDS
    if isinstance(error, Denied):
        return Failure(error.code, error.message[:most], error.fix[:most])
    words = error.message if isinstance(error, SkerryError) else f"{error!r:.200}"
    return Failure(DeciderUnavailable.code, f"the policy manager failed: {words}"[:most], "")


def serve(read: Callable[[], bytes], write: Callable[[bytearray], object]) -> None:
    """Answer until `read` returns nothing. Raises `WireError` for a broken order."""
    service = Service()
    untrusted = bytearray()
    while chunk := read():
        untrusted += chunk
        answers = bytearray()
        while (body := messages.take(untrusted, messages.MAX_ORDER)) is not None:
            answers += _packed(service.answer(messages.order(body)))
        if answers:
            write(answers)


def _packed(answer: Answer) -> bytes:
    try:
        return messages.packed(answer)
    except WireError as error:  # too long: said in a short one
        return messages.packed(Answer(answer.number, _failure(error)))


def main() -> None:
    """Run the process until the node ends."""
    prctl(PR_SET_DUMPABLE, 0)
    with socket.socket(fileno=SOCKET) as sock:
        serve(lambda: sock.recv(_CHUNK), sock.sendall)
