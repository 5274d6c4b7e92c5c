"""An assembler for seccomp's classic BPF: an allow-list of system calls with conditions.

The rule: what is not listed is refused. A condition looks at all 64 bits of an argument, or at the
32 that the kernel itself looks at, never at fewer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000
MAX_INSTRUCTIONS = 4096
"""Longest filter: what the kernel takes. A longer one is an error where it is made."""

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_GREATER_EQUAL = 0x15, 0x35
_LOW, _HIGH = 0xFFFFFFFF, 32


class Arg(NamedTuple):
    """Holds when `argument & mask == value`; `wide` compares 64 bits instead of 32."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    wide: bool = False


Rule = tuple[Arg, ...]
"""Conditions that must all hold."""


class Call(NamedTuple):
    """A system call that is allowed when one of `rules` holds; no rules: always."""

    number: int
    rules: tuple[Rule, ...] = ()


def _instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, k)


def _condition(arg: Arg, failed: int) -> list[bytes]:
    """Compare one argument; `failed` instructions after the condition the next rule starts."""
    words = [(16 + 8 * arg.argument, arg.mask & _LOW, arg.value & _LOW)]
    if arg.wide:
        words.append((20 + 8 * arg.argument, arg.mask >> _HIGH, arg.value >> _HIGH))
    code: list[bytes] = []
    for n, (offset, mask, value) in enumerate(words):
        left = 3 * (len(words) - n - 1)
        code.append(_instruction(_LOAD, offset))
        code.append(_instruction(_AND, mask))
        code.append(_instruction(_JUMP_EQUAL, value, 0, left + failed))
    return code


def _rule(rule: Rule) -> list[bytes]:
    """Allow if every condition holds, else fall through behind the rule."""
    code = [_instruction(_RETURN, ALLOW)]
    for arg in reversed(rule):
        code = _condition(arg, len(code)) + code
    return code


def assemble(calls: Sequence[Call], errors: Mapping[int, int], default: int) -> bytes:
    """Return the program: `calls` are allowed, those in `errors` and all others fail with errno.

    Another architecture's call kills the process; the x32 numbers fail with `default`.
    Raises ValueError when the program is too long for the kernel or for a jump.
    """
    code = [
        _instruction(_LOAD, 4),
        _instruction(_JUMP_EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        _instruction(_RETURN, KILL_PROCESS),
        _instruction(_LOAD, 0),
        _instruction(_JUMP_GREATER_EQUAL, X32_BIT, 0, 1),
        _instruction(_RETURN, ERRNO | default),
    ]
    for number, error in errors.items():
        code.append(_instruction(_JUMP_EQUAL, number, 0, 1))
        code.append(_instruction(_RETURN, ERRNO | error))
    for call in calls:
        body = [line for rule in call.rules for line in _rule(rule)]
        # Behind failed rules the accumulator holds an argument, so the answer is given here.
        end = ERRNO | default if call.rules else ALLOW
        body.append(_instruction(_RETURN, end))
        if len(body) > 255:
            raise ValueError(f"too many rules for system call {call.number}")
        code += [_instruction(_JUMP_EQUAL, call.number, 0, len(body)), *body]
    code.append(_instruction(_RETURN, ERRNO | default))
    if len(code) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(code)} instructions; the kernel takes {MAX_INSTRUCTIONS}")
    return b"".join(code)
