"""Messages between a guest and its node on the port `skerry.control`: lines, version 1.

The rule it keeps: what comes from a guest is untrusted and bounded before it is stored; each line
is one of the calls below or a `Malformed`, which is answered and ends nothing. A line says
everything itself, so that neither side need know when the other was started anew.

A line is words separated by one space, ended by a newline. It begins with the version and an ID:
1 to 16 of `0-9a-z`, chosen by the guest and given back with the answer. NAME is a
service's, 1 to 20 of `a-z0-9-`, a letter first. Empty lines mean nothing, either way.

Guest to node, at most `CALL_MAX` bytes:
    1 ID label              who am I
    1 ID offer NAME         serve this name from now on
    1 ID connect NAME       bind a two-way stream to who serves it
    1 ID close NAME         serve it no longer; streams that were bound stay
    1 ID close NUMBER       cut a stream that was bound by `connect`, from either end
    1 ID why NUMBER         the answer that had this record's number, once more
Node to guest, an answer: any number of fields, then how it ended
    1 ID is KEY TEXT        TEXT is the rest of the line, at most `TEXT_MAX` characters
    1 ID ok                 done
    1 ID denied CODE        refused; nothing was done
    1 ID failed CODE        not done for another reason
Node to guest, unasked, in the form of an answer with these IDs:
    -label                  as the answer to `label`: at first, and whenever it is another
    -offers                 the services that this guest offers: at first, and whenever others
    -connected              somebody was bound to a service of this guest

A line that is no call has the ID `?` in its answer where it has none that can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from skerry.wire.escape import escape

VERSION = 1
PORT = "skerry.control"
"""The port by which a guest calls its node; no channel may have this name."""
CALL_MAX = 128
"""Longest call in bytes, its newline included; a longer line is dropped and answered as one."""
TEXT_MAX = 4608
"""Longest text of a field, in characters: a label of two modules fits. A longer one is cut."""

_NAME = rb"[a-z][a-z0-9-]{0,19}"
_NUMBER = rb"[1-9][0-9]{0,17}"
_CALL = re.compile(
    rb"1 ([0-9a-z]{1,16}) (?:(label)|(offer|connect) (%b)|(close) (%b|%b)|(why) (%b))"
    % (_NAME, _NAME, _NUMBER, _NUMBER)
)
_HEAD = re.compile(rb"([0-9]{1,4}) ([0-9a-z]{1,16})(?: .*)?", re.DOTALL)
_UNKNOWN_ID = "?"

Verb = Literal["label", "offer", "connect", "close", "why"]
End = Literal["ok", "denied", "failed"]


class Call(msgspec.Struct, frozen=True):
    """One call; `argument` is a service's name or a number in decimal, as the verb has it."""

    id: str
    verb: Verb
    argument: str = ""


class Malformed(msgspec.Struct, frozen=True):
    """A line that is no call: `VERSION`, `TOO-LONG` or `MALFORMED`."""

    id: str
    code: str


class Answer(msgspec.Struct, frozen=True):
    """How a call ended, and what is said of it."""

    end: End
    code: str = ""
    fields: tuple[tuple[str, str], ...] = ()


class Parser:
    """Turns the bytes of one port into calls; keeps at most one unfinished line."""

    def __init__(self) -> None:
        self._untrusted_rest = b""
        self._is_dropping = False

    def feed(self, untrusted: bytes) -> list[Call | Malformed]:
        """Return what these bytes complete, in order. Raises nothing."""
        *lines, rest = (self._untrusted_rest + untrusted).split(b"\n")
        found: list[Call | Malformed] = []
        for line in lines:
            if self._is_dropping:
                self._is_dropping = False  # this was its end
            elif line:
                found.append(parse(line))
        if len(rest) >= CALL_MAX and not self._is_dropping:
            found.append(_too_long(rest))
            self._is_dropping = True
        self._untrusted_rest = b"" if self._is_dropping else rest
        return found


def parse(untrusted_line: bytes) -> Call | Malformed:
    """Return what a line without its newline says."""
    if len(untrusted_line) >= CALL_MAX:
        return _too_long(untrusted_line)
    if match := _CALL.fullmatch(untrusted_line):
        verb, *argument = (part.decode() for part in match.groups()[1:] if part is not None)
        return Call(match[1].decode(), msgspec.convert(verb, Verb), "".join(argument))
    head = _HEAD.fullmatch(untrusted_line)
    if head is None:
        return Malformed(_UNKNOWN_ID, "MALFORMED")
    return Malformed(head[2].decode(), "MALFORMED" if int(head[1]) == VERSION else "VERSION")


def _too_long(untrusted_line: bytes) -> Malformed:
    head = _HEAD.fullmatch(untrusted_line)
    return Malformed(head[2].decode() if head else _UNKNOWN_ID, "TOO-LONG")


def call(identity: str, verb: Verb, argument: str = "") -> bytes:
    """Return a call as a guest writes it."""
    return " ".join(filter(None, (str(VERSION), identity, verb, argument))).encode() + b"\n"


def encode(identity: str, answer: Answer) -> bytes:
    """Return the lines of an answer. What is not printable in a text is escaped, so that it stays
    one line; the rest is as it is, so that a label is that label."""
    head = f"{VERSION} {identity}"
    lines = [f"{head} is {key} {_plain(text)}" for key, text in answer.fields]
    lines.append(" ".join(filter(None, (head, answer.end, answer.code))))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def _plain(text: str) -> str:
    shown = text if text.isprintable() else "".join(map(_char, text))
    return shown if len(shown) <= TEXT_MAX else shown[: TEXT_MAX - 1] + "…"


def _char(char: str) -> str:
    return char if char.isprintable() else escape(char)


def fields(**texts: object) -> tuple[tuple[str, str], ...]:
    """Return fields in the order in which they are given; those without a value are left out."""
    pairs: Iterable[tuple[str, object]] = texts.items()
    return tuple((key, str(text)) for key, text in pairs if text)
