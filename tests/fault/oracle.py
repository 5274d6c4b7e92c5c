"""What must be true after a kill, from what was asked and what was answered: a few plain rules.

The rule: an answer binds for good, a refusal left nothing behind, and what got no answer may have
happened or not. Nothing of the product is used here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

POLICIES: dict[str, dict[str, str]] = {
    "wide": {"r": "red", "b": "blue", "rb": "red blue", "n": "red"},
    "narrow": {"r": "red", "b": "blue", "rb": "red", "n": "red"},
    "split": {"r": "red", "b": "blue", "rb": "red blue", "n": "blue"},
    "less": {"r": "red", "rb": "red blue", "n": "red"},
    "closed": {"r": "red", "b": "blue", "rb": "", "n": ""},
}
"""The types of each label under each policy; two that share one may talk. `less` lacks one."""

WALL = {"r": "x", "b": "y"}
"""`x` and `y` must not run beside each other."""

RESOURCE, RESOURCE_LABEL = "depot", "resource:depot"
"""The resource of the file, and its label: of the type red under each policy."""

DOMAINS = {"d1": "r", "d2": "b", "d3": "rb", "d4": "n", "d5": "n"}
"""The domains of the file, and the labels with which they start."""

ALARM = ("d3", "d4")
"""The domains that the alarm ends."""


def policy_text(name: str) -> str:
    """Write one of the policies as the file that a user would write."""

    def words(types: str) -> str:
        return ", ".join(f'"{each}"' for each in types.split())

    labels = "".join(
        f"[labels.{label}]\nste = [{words(types)}]\n"
        + (f'cw = ["{WALL[label]}"]\n' if label in WALL else "")
        for label, types in POLICIES[name].items()
    )
    return (
        f'[policy]\nname = "{name}"\nversion = "1.0"\nbootstrap = "op"\n'
        '[simple-type-enforcement]\ntypes = ["op", "red", "blue"]\n'
        '[chinese-wall]\ntypes = ["x", "y"]\n'
        '[[chinese-wall.conflicts]]\nname = "rivals"\ntypes = ["x", "y"]\n'
        f'[labels.op]\nste = ["op", "red", "blue"]\n{labels}'
        f'[resources.{RESOURCE}]\nste = "red"\n'
    )


DECLARED = {"declared": ("d1", "d4"), "other": ("d3", "d5")}
"""The channels that one or the other form of the system file declares."""


def system_text(declared: str = "declared") -> str:
    """Write the system file with one of the channels."""
    domains = "".join(
        f'[domains.{name}]\nlabel = "{label}"\nmachine = "simulator"\nautostart = false\n'
        for name, label in DOMAINS.items()
    )
    stop = ", ".join(f'"{name}"' for name in ALARM)
    return (
        f'name = "storm"\npolicy = "wide.toml"\n{domains}'
        f'[[channels]]\nkind = "stream"\nname = "{declared}"\n'
        f'from = "{DECLARED[declared][0]}"\nto = "{DECLARED[declared][1]}"\n'
        f"[alarm.fire]\nstop = [{stop}]\n"
        f'[resources.{RESOURCE}]\nkind = "disk"\nlabel = "{RESOURCE}"\nfile = "depot.img"\n'
    )


def may_talk(policy: str, one: str, other: str) -> bool:
    """Say whether two labels may share a channel."""
    types = {**POLICIES[policy], RESOURCE_LABEL: "red"}
    return bool(set(types.get(one, "").split()) & set(types.get(other, "").split()))


def rivals(labels: Iterable[str]) -> bool:
    """Say whether domains with these labels must not run beside each other."""
    return len({WALL[label] for label in labels if label in WALL}) > 1


class Fact:
    """One command: when it was asked, and what came of it if anything did."""

    def __init__(self, kind: str, about: dict[str, Any], begun: int) -> None:
        self.kind = kind
        self.about = about
        self.begun = begun
        self.done: int | None = None
        self.answer: Any = None
        self.error = ""

    @property
    def acknowledged(self) -> bool:
        """Whether it was said to be done."""
        return self.done is not None and not self.error

    @property
    def open(self) -> bool:
        """Whether there was no answer at all."""
        return self.done is None

    def __repr__(self) -> str:
        how = self.error or ("?" if self.open else f"-> {self.answer}")
        return f"{self.begun}..{self.done} {self.kind} {self.about} {how}"


class Ledger:
    """All commands since the last time that everything was checked."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self._time = itertools.count()

    def ask(self, kind: str, **about: Any) -> Fact:
        """Note that a command begins."""
        fact = Fact(kind, about, self.moment())
        self.facts.append(fact)
        return fact

    def answer(self, fact: Fact, answer: Any = None, error: str = "") -> None:
        """Note what it came to."""
        fact.answer, fact.error = answer, error
        fact.done = self.moment()

    def moment(self) -> int:
        """Return the time, which goes on with every question."""
        return next(self._time)

    def of(self, *kinds: str, since: int = -1, **about: Any) -> list[Fact]:
        """Return the commands of some kinds that may have acted after a moment."""
        return [
            fact
            for fact in self.facts
            if fact.kind in kinds
            and (fact.done is None or fact.done > since)
            and all(fact.about.get(name) == value for name, value in about.items())
        ]


def possible(before: Any, facts: list[Fact], value: str) -> list[Any]:
    """Return what a thing may be now that was `before`, after commands that set it to `value`.

    An acknowledged command rules out what was answered before it was asked.
    """
    acknowledged = [fact for fact in facts if fact.acknowledged]

    def superseded(done: int | None) -> bool:
        return done is not None and any(later.begun > done for later in acknowledged)

    found = [] if superseded(-1) else [before]
    for fact in facts:
        if (fact.open or fact.acknowledged) and not superseded(fact.done):
            found.append(fact.about[value])
    return found
