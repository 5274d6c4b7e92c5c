"""What a node makes of its policy manager's answers.

The rule this module keeps: an answer of a wrong form ends the link to the manager and is a denial,
as is every failure that it tells; its words are escaped before anybody is shown them.
"""

from __future__ import annotations

from collections.abc import Sequence

from skerry.errors import DeciderUnavailable, Denied, StaleGeneration
from skerry.policy.link import Link, Reply
from skerry.policy.messages import Answered, Ask, Failure, Made, Question
from skerry.policy.wellformed import plain, shown, well_formed
from skerry.xsm.request import Verdict
from skerry.xsm.stack import Stack

_BY_CODE = {error.code: error for error in (DeciderUnavailable, StaleGeneration)}


async def ask(link: Link, candidate: int, question: Question, generation: int) -> Verdict:
    """Ask one question of a candidate, or of the policy in force (0). Raises `Denied`."""
    reply = await link.order(Ask(candidate, (question,)))
    (answer,) = answers_of(link, (question,), reply, generation)
    if isinstance(answer, Failure):
        raise denial(answer)
    return answer


def answers_of(
    link: Link, questions: Sequence[Question], reply: Reply, generation: int
) -> list[Verdict | Failure]:
    """Return an answer for each question. Raises `Denied`; a wrong form ends the link."""
    if isinstance(reply, Failure):
        raise denial(reply)
    if not isinstance(reply, Answered) or len(reply.answers) != len(questions):
        raise broken(link)
    found: list[Verdict | Failure] = []
    for question, (verdict, failure) in zip(questions, reply.answers, strict=True):
        if failure is not None and verdict is None:
            found.append(failure)
        elif verdict is not None and well_formed(question, verdict, generation):
            found.append(plain(verdict))
        else:
            raise broken(link)
    return found


def require_made(link: Link, reply: Reply, generation: int, stack: Stack) -> None:
    """Raise a `Denied` unless the manager has made this very policy."""
    if isinstance(reply, Failure):
        raise denial(reply)
    if not isinstance(reply, Made):
        raise broken(link)
    if (reply.generation, reply.digest) != (generation, stack.digest):
        raise DeciderUnavailable("the policy manager has made another policy of the same sources")


def denial(failure: Failure) -> Denied:
    """Return a failure that the manager told as the denial that it is."""
    message, fix, kind = shown(failure.message), shown(failure.fix), _BY_CODE.get(failure.code)
    if kind is not None:
        return kind(message, fix=fix)
    return Denied(message, fix=fix, code=shown(failure.code))


def broken(link: Link) -> DeciderUnavailable:
    """End the link to a manager that breaks the protocol, and return the denial to raise."""
    link.end("its answer has a wrong form")
    return DeciderUnavailable("the policy manager's answer has a wrong form")
