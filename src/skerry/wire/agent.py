"""Messages between the host and the agent in a guest: lines over a virtio port, version 1.

The rule it keeps: what comes from a guest is untrusted, is bounded before it is stored, and is
either exactly one of the messages below or a `WireError` (then the port is given up).

A line is words separated by one space, ended by a newline, at most 4,096 bytes in all. IDs are 8
decimal digits chosen by the host, a nonce is 16; payloads are base64, never empty.

Host to guest:
    hello NONCE       forget everything (commands are killed), then answer
    argv ID B64       append to the command's words, quoted for a shell and joined by spaces;
                      every piece but the last is a multiple of 3 bytes, here and for `stdin`
    stdin ID B64      append to the command's input; it is complete before the command starts
    run ID            start it, in a session of its own, as root in /root
    kill ID           end it and all in its process group
    poweroff ID       write everything out and switch the machine off; no answer
    wake ID DATA .    to a clone of a template, before anything else: who it is; no answer. DATA is
                      bytes, each as \\ and 3 octal digits: Unix seconds (8, little-endian), 64
                      random ones to mix in, its name, a newline, its label, a newline. A guest
                      that is awake passes it over
Guest to host:
    hello 1 NONCE     the answer, with the version
    out ID B64        from standard output, in order, at most 3,000 bytes
    err ID B64        from standard error, likewise
    exit ID CODE      it has ended and its outputs are closed; 0 to 255, 128 + signal

Output that the host does not take is not stored in the guest: the command waits. A command whose
background children keep its output open has not ended, as with ssh.

Lines before the awaited `hello` are left over from an earlier host and are dropped, up to
`STALE_MAX` bytes. Lines for IDs that are not the caller's are well-formed messages: what to do
with them is the caller's to decide.
"""

from __future__ import annotations

import binascii
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from skerry.errors import SkerryError, WireError

VERSION = 1
LINE_MAX = 4096
"""Longest line in bytes, its newline included; a guest that sends a longer one loses its port."""
CHUNK_MAX = 3000
"""Most bytes in one payload; the host splits, a guest that sends more loses its port."""
ARGV_MAX = 64 << 10
"""Longest command in bytes, quoted for a shell; a longer one is refused."""
STDIN_MAX = 1 << 20
"""Most bytes of a command's input; more is refused before the command starts."""
STALE_MAX = 16 << 20
"""Most bytes before the agent's first answer; beyond it the port is given up. A microvm's port
alone holds 4 MiB of what an earlier host did not take."""

SEED = 64
"""Random bytes that a clone gets; it takes no other number."""

_HELLO = re.compile(rb"hello ([0-9]{1,4}) ([0-9]{16})")
_EXIT = re.compile(rb"exit ([0-9]{8}) ([0-9]{1,3})")
_OUTPUT = re.compile(rb"(out|err) ([0-9]{8}) ([A-Za-z0-9+/]+={0,2})")

Stream = Literal["out", "err"]


class Hello(msgspec.Struct, frozen=True):
    """The agent answered the host's `hello` and speaks our version."""


class Output(msgspec.Struct, frozen=True):
    """A piece of a command's output; `untrusted_data` is 1 to `CHUNK_MAX` bytes."""

    id: int
    stream: Stream
    untrusted_data: bytes


class Exit(msgspec.Struct, frozen=True):
    """A command's end."""

    id: int
    code: int


Message = Hello | Output | Exit


class Parser:
    """Turns the bytes of one connection into messages; keeps at most one unfinished line.

    Made for one nonce; the first message is the `Hello` that answers it. After a `WireError` the
    parser is of no further use.
    """

    def __init__(self, nonce: str) -> None:
        self._awaited: bytes | None = nonce.encode()
        self._untrusted_rest = b""
        self._stale = 0

    def feed(self, untrusted: bytes) -> list[Message]:
        """Return the messages that these bytes complete.

        Raises `WireError` for a line that is too long, unknown or malformed, and for more than
        `STALE_MAX` bytes before the awaited answer.
        """
        *lines, rest = (self._untrusted_rest + untrusted).split(b"\n")
        messages: list[Message] = []
        for line in lines:
            if self._awaited is not None:
                messages += self._greet(line)
            else:
                messages.append(_parse(line))
        if len(rest) >= LINE_MAX:
            if self._awaited is None:
                raise WireError("the guest's agent sent a line that is too long")
            # The rest of a dropped line is dropped when it comes, as no answer looks like it.
            self._drop(len(rest))
            rest = b"-"
        self._untrusted_rest = rest
        return messages

    def _greet(self, untrusted_line: bytes) -> list[Message]:
        match = _HELLO.fullmatch(untrusted_line)
        if match is None or match[2] != self._awaited:
            self._drop(len(untrusted_line) + 1)
            return []
        if int(match[1]) != VERSION:
            raise WireError(
                f"the guest's agent speaks version {int(match[1])}, not {VERSION}",
                fix="build the image again: skerry image build",
            )
        self._awaited = None
        return [Hello()]

    def _drop(self, count: int) -> None:
        self._stale += count
        if self._stale > STALE_MAX:
            raise WireError("the guest's agent sends, but does not answer")


def hello(nonce: str) -> bytes:
    """Return the greeting. The newline before it ends a line that an earlier host left torn."""
    return f"\nhello {nonce}\n".encode()


def command(number: int, argv: Sequence[str], stdin: bytes) -> Iterator[bytes]:
    """Return the lines that start a command, checked as a whole before the first is given.

    Raises `SkerryError` for an empty command, a NUL in it, or one beyond `ARGV_MAX`, `STDIN_MAX`.
    """
    words = " ".join(shlex.quote(word) for word in argv).encode("utf-8", "surrogateescape")
    if not argv or b"\0" in words:
        raise SkerryError("a command needs at least one word, and none may hold a NUL")
    if len(words) > ARGV_MAX or len(stdin) > STDIN_MAX:
        raise SkerryError(
            f"a command takes at most {ARGV_MAX >> 10} KiB of words"
            f" and {STDIN_MAX >> 10} KiB of input"
        )
    return _command(number, words, stdin)


def kill(number: int) -> bytes:
    """Return the line that ends a command."""
    return f"kill {number:08}\n".encode()


def poweroff() -> bytes:
    """Return the line that switches the guest off."""
    return f"poweroff {0:08}\n".encode()


def wake(seconds: int, seed: bytes, name: str, label: str) -> bytes:
    """Return the line that a clone awakes by. The newline before it ends a torn line."""
    assert len(seed) == SEED
    data = seconds.to_bytes(8, "little") + seed + f"{name}\n{label}\n".encode()
    octal = "".join(f"\\{byte:03o}" for byte in data)
    return f"\nwake {0:08} {octal} .\n".encode()


def _command(number: int, words: bytes, stdin: bytes) -> Iterator[bytes]:
    for verb, data in (("argv", words), ("stdin", stdin)):
        for start in range(0, len(data), CHUNK_MAX):
            payload = binascii.b2a_base64(data[start : start + CHUNK_MAX]).decode()
            yield f"{verb} {number:08} {payload}".encode()
    yield f"run {number:08}\n".encode()


def _parse(untrusted_line: bytes) -> Message:
    if len(untrusted_line) < LINE_MAX:
        if match := _OUTPUT.fullmatch(untrusted_line):
            return Output(int(match[2]), "out" if match[1] == b"out" else "err", _payload(match[3]))
        match = _EXIT.fullmatch(untrusted_line)
        if match and int(match[2]) <= 255:
            return Exit(int(match[1]), int(match[2]))
    # The first bytes only, and escaped: they are the guest's words.
    raise WireError(f"the guest's agent sent no valid message: {ascii(untrusted_line[:40])[2:-1]}")


def _payload(untrusted_text: bytes) -> bytes:
    try:
        data = binascii.a2b_base64(untrusted_text, strict_mode=True)
    except binascii.Error as error:
        raise WireError("the guest's agent sent a payload that is not base64") from error
    if not 0 < len(data) <= CHUNK_MAX:
        raise WireError("the guest's agent sent a payload that is too long")
    return data
