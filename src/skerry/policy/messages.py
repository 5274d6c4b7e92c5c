"""What a node and its policy manager say to each other: four bytes of length, then MessagePack.

The rules this module keeps: each side bounds a message before it makes room for it, and takes none
that is not of these forms; every answer names the order that it answers. What an answer lists is
counted before there is room made for it, so that a short one can't take much.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from skerry.errors import WireError
from skerry.label import Label
from skerry.policy.source import Source
from skerry.xsm.request import Verdict
from skerry.xsm.stack import History

MAX_ORDER = 32 * 1024 * 1024
"""Longest order of the node, in bytes: the policies of every module and a history fit."""

MAX_ANSWER = 32 * 1024 * 1024
"""Longest answer of the manager, in bytes; a longer one counts as a broken manager."""

MAX_QUESTIONS = 16
"""Most questions of one order: with the longest labels on all sides of each, for three modules, the
verdicts fit into an answer."""

MAX_WORDS = 4_096
"""Longest sentence of a failure, in characters; the manager cuts a longer one short."""

MAX_CODE = 64
"""Longest code of a failure, and digest of a policy, in characters."""

MAX_TOUCHED = 16_384
"""Most types that a label can have touched; an answer that names more counts as a broken manager's.
"""

MAX_MODULES = 3
"""Most modules that keep a history: there are no more kinds."""

_LENGTH = struct.Struct(">I")


class Hooked(msgspec.Struct, frozen=True, tag="hook", array_like=True):
    """Decide a hook for these parties."""

    hook: str
    parties: Mapping[str, Label]


class Started(msgspec.Struct, frozen=True, tag="start", array_like=True):
    """Decide the Chinese Wall question for a start."""

    label: Label
    running: tuple[Label, ...]


class Exchanged(msgspec.Struct, frozen=True, tag="bind", array_like=True):
    """Decide the history question for an exchange, each with every other."""

    labels: tuple[Label, ...]


Question = Hooked | Started | Exchanged


class Begin(msgspec.Struct, frozen=True, tag="begin", array_like=True):
    """The policy in force, its generation, and what each label has touched. Comes first."""

    generation: int
    sources: tuple[Source, ...]
    history: dict[str, dict[str, frozenset[str]]]


class Offered(msgspec.Struct, frozen=True, array_like=True):
    """A source of a candidate; no content where it is the same as in force."""

    file: str
    content: bytes | None
    booleans: dict[str, bool]


class Propose(msgspec.Struct, frozen=True, tag="propose", array_like=True):
    """Make a candidate with this number, at least 1 and higher than all before.

    One that is `loading` has a place of its own, which only the next that is takes from it.
    """

    candidate: int
    sources: tuple[Offered, ...]
    loading: bool


class Ask(msgspec.Struct, frozen=True, tag="ask", array_like=True):
    """Answer questions under a candidate, or under the policy in force (0)."""

    candidate: int
    questions: tuple[Question, ...]


class Touch(msgspec.Struct, frozen=True, tag="touch", array_like=True):
    """Let an exchange count, each with every other, if the wall still lets it."""

    labels: tuple[Label, ...]


class Install(msgspec.Struct, frozen=True, tag="install", array_like=True):
    """Bring a candidate into force."""

    candidate: int


class Order(msgspec.Struct, frozen=True, array_like=True):
    """What the node sends."""

    number: int
    what: Begin | Propose | Ask | Touch | Install


class Failure(msgspec.Struct, frozen=True, tag="failure", array_like=True):
    """A denial that no module decided."""

    code: Annotated[str, Meta(max_length=MAX_CODE)]
    message: Annotated[str, Meta(max_length=MAX_WORDS)]
    fix: Annotated[str, Meta(max_length=MAX_WORDS)]


class Made(msgspec.Struct, frozen=True, tag="made", array_like=True):
    """A policy was made, or came into force; `digest` is its stack's."""

    generation: int
    digest: Annotated[str, Meta(max_length=MAX_CODE)]


class Answered(msgspec.Struct, frozen=True, tag="answered", array_like=True):
    """For each question in turn the verdict, or why there is none."""

    answers: Annotated[
        tuple[tuple[Verdict | None, Failure | None], ...], Meta(max_length=MAX_QUESTIONS)
    ]


_Types = Annotated[frozenset[str], Meta(max_length=MAX_TOUCHED)]


class Touched(msgspec.Struct, frozen=True, tag="touched", array_like=True):
    """The wall's answer, and what every label of the exchange has touched, to the last exchange.

    All of it, and not what this order added: the answer to an earlier one may have been lost.
    """

    verdict: Verdict
    touched: Annotated[dict[str, _Types], Meta(max_length=MAX_MODULES)]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What the manager sends."""

    number: int
    what: Failure | Made | Answered | Touched


_ENCODER = msgspec.msgpack.Encoder()
_ORDERS = msgspec.msgpack.Decoder(Order)
_ANSWERS = msgspec.msgpack.Decoder(Answer)


def packed(message: Order | Answer) -> bytes:
    """Return a message as it goes over the socket. Raises `WireError` if it is too long."""
    body = _ENCODER.encode(message)
    limit = MAX_ORDER if isinstance(message, Order) else MAX_ANSWER
    if len(body) > limit:
        raise WireError(f"a message of {len(body)} bytes is over the limit of {limit}")
    return _LENGTH.pack(len(body)) + body


def take(untrusted: bytearray, limit: int) -> bytes | None:
    """Take one whole message off the front, None while it is not all there. Raises `WireError`."""
    if len(untrusted) < _LENGTH.size:
        return None
    (untrusted_length,) = _LENGTH.unpack_from(untrusted)
    if not 0 < untrusted_length <= limit:
        raise WireError(f"a message claims {untrusted_length} bytes; 1 to {limit} are accepted")
    end = _LENGTH.size + int(untrusted_length)
    if len(untrusted) < end:
        return None
    body = bytes(untrusted[_LENGTH.size : end])
    del untrusted[:end]
    return body


def order(untrusted: bytes) -> Order:
    """Read what the node sent. Raises `WireError`."""
    try:
        return _ORDERS.decode(untrusted)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"no order: {error}") from None


def answer(untrusted: bytes) -> Answer:
    """Read what the manager sent. Raises `WireError`."""
    try:
        return _ANSWERS.decode(untrusted)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"no answer: {error}") from None


def plain(history: History) -> dict[str, dict[str, frozenset[str]]]:
    """Return a history as messages hold it."""
    return {module: dict(entries) for module, entries in history.items()}
