"""Security contexts as text: `user:role:type`, and `:level` or `:low-high` where there is MLS.

The rule this module keeps: a text stands for a context only if the policy allows that context;
anything else is `UnknownLabel` with the reason, never a guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from skerry.errors import UnknownLabel
from skerry.xsm.flask.model import (
    NO_RANGE,
    OBJECT_ROLE,
    Context,
    FlaskPolicy,
    Level,
    Range,
)

MAX_CONTEXT = 4096
"""Longest text of a context; a longer one is refused unread. With many categories it is long."""


MAX_TEXTS = 65_536
"""Most contexts whose text is kept; beyond it, they are forgotten and written anew."""


class Contexts:
    """Contexts of one policy, to and from text."""

    def __init__(self, policy: FlaskPolicy) -> None:
        self._policy = policy
        self._texts: dict[Context, str] = {}
        self._users = {user.name: user.value for user in policy.users.values()}
        self._roles = {role.name: role.value for role in policy.roles.values()}
        self._types: dict[str, int] = {}
        for kind in policy.types.values():
            if not kind.attribute:
                self._types.update(dict.fromkeys((kind.name, *kind.aliases), kind.value))
        self._ranks = {
            name: rank
            for rank, level in policy.sensitivities.items()
            for name in (level.name, *level.aliases)
        }
        self._categories = {
            name: category.value
            for category in policy.categories.values()
            for name in (category.name, *category.aliases)
        }

    def parse(self, untrusted: str) -> Context:
        """Return the context of a text. Raises `UnknownLabel` if the policy has no such one."""
        if len(untrusted) > MAX_CONTEXT:
            raise UnknownLabel(f"a context is longer than {MAX_CONTEXT} characters")
        parts = untrusted.split(":", 3)
        wanted = 4 if self._policy.mls else 3
        if len(parts) != wanted:
            form = "user:role:type:level" if self._policy.mls else "user:role:type"
            raise _unknown(untrusted, f"a context of this policy is written {form}")
        user = _find(self._users, parts[0], "user", untrusted)
        role = _find(self._roles, parts[1], "role", untrusted)
        kind = _find(self._types, parts[2], "type", untrusted)
        span = self._range(parts[3], untrusted) if self._policy.mls else NO_RANGE
        context = Context(user, role, kind, span)
        problem = self.problem(context)
        if problem:
            raise _unknown(untrusted, problem)
        return context

    def text(self, context: Context) -> str:
        """Write a context."""
        known = self._texts.get(context)
        if known is None:
            if len(self._texts) >= MAX_TEXTS:
                self._texts.clear()
            known = self._texts[context] = self._written(context)
        return known

    def _written(self, context: Context) -> str:
        policy = self._policy
        names = (
            policy.users[context.user].name,
            policy.roles[context.role].name,
            policy.type_name(context.type),
        )
        if not policy.mls:
            return ":".join(names)
        return ":".join((*names, self.range_text(context.range)))

    def range_text(self, span: Range) -> str:
        """Write a range, shortened to one level where low and high are the same."""
        low = self.level_text(span.low)
        return low if span.low == span.high else f"{low}-{self.level_text(span.high)}"

    def level_text(self, level: Level) -> str:
        """Write a level, runs of categories as `c0.c3`.

        What is longer than any context is cut off there, so it never reads as a context, and ends
        with a digest of all categories.
        """
        name = self._policy.sensitivities[level.sensitivity].name
        written: list[str] = []
        room = MAX_CONTEXT
        for run in _runs(level.categories):
            written.append(self._run(*run))
            room -= len(written[-1]) + 1
            if room < 0:
                whole = hashlib.sha256(
                    level.categories.to_bytes((level.categories.bit_length() + 7) // 8, "little")
                )
                written.append(f"... (sha256 {whole.hexdigest()})")
                break
        return f"{name}:{','.join(written)}" if written else name

    def problem(self, context: Context) -> str:
        """Say why the policy does not allow a context; "" if it does."""
        policy = self._policy
        kind, role = policy.types.get(context.type), policy.roles[context.role]
        if kind is None or kind.attribute:
            return "its type is not one that things can have"
        if context.role != OBJECT_ROLE:
            if not role.types >> context.type - 1 & 1:
                return f"the role {role.name} may not have the type {kind.name}"
            user = policy.users[context.user]
            if not user.roles >> context.role - 1 & 1:
                return f"the user {user.name} may not have the role {role.name}"
        return self._range_problem(context) if policy.mls else ""

    def _range_problem(self, context: Context) -> str:
        for level in (context.range.low, context.range.high):
            sensitivity = self._policy.sensitivities.get(level.sensitivity)
            if sensitivity is None or level.categories & ~sensitivity.level.categories:
                return "its level has a category that does not go with its sensitivity"
        if not context.range.high.dominates(context.range.low):
            return "its high level does not dominate its low one"
        user = self._policy.users[context.user]
        if context.role != OBJECT_ROLE and not user.range.contains(context.range):
            return f"the user {user.name} may not have that range"
        return ""

    def _range(self, untrusted: str, whole: str) -> Range:
        low_text, dash, high_text = untrusted.partition("-")
        low = self._level(low_text, whole)
        return Range(low, self._level(high_text, whole) if dash else low)

    def _level(self, untrusted: str, whole: str) -> Level:
        name, colon, listed = untrusted.partition(":")
        rank = _find(self._ranks, name, "sensitivity", whole)
        categories = 0
        for item in listed.split(",") if colon else ():
            first_text, dot, last_text = item.partition(".")
            first = _find(self._categories, first_text, "category", whole)
            last = _find(self._categories, last_text, "category", whole) if dot else first
            if dot and first >= last:
                raise _unknown(whole, f"the range {item} runs backwards")
            categories |= (1 << last) - (1 << first - 1)
        return Level(rank, categories)

    def _run(self, first: int, last: int) -> str:
        name = self._policy.categories
        if first == last:
            return name[first].name
        joint = "." if last - first > 1 else ","
        return name[first].name + joint + name[last].name


def _runs(categories: int) -> Iterator[tuple[int, int]]:
    """Yield the first and last value of each run of neighbours in a set."""
    at, left = 0, categories
    while left:
        gap = (left & -left).bit_length() - 1
        left >>= gap
        length = (~left & left + 1).bit_length() - 1
        left >>= length
        yield at + gap + 1, at + gap + length
        at += gap + length


def _find(table: dict[str, int], untrusted: str, what: str, whole: str) -> int:
    value = table.get(untrusted)
    if value is None:
        raise _unknown(whole, f"the policy has no {what} {untrusted!r}")
    return value


def _unknown(untrusted: str, why: str) -> UnknownLabel:
    return UnknownLabel(f"no context {untrusted!r}: {why}")
