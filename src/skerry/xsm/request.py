"""What is asked of a security module and what it answers: requests, answers, decisions.

An access request is `(subject label, target label, class, permissions)` with the classes and
permission names of Xen's FLASK, so that one policy governs QEMU domains and a real Xen.
"""

from __future__ import annotations

import msgspec

from skerry.label import Few, Label


class Request(msgspec.Struct, frozen=True):
    """May `subject` use all of `permissions` of class `tclass` on `target`?"""

    subject: Label
    target: Label
    tclass: str
    permissions: Few[str]


class Rule(msgspec.Struct, frozen=True):
    """The place in a policy that decided; `file` and `line` are empty where the form has none."""

    text: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        if not self.file:
            return self.text
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{self.text} ({where})"


class Answer(msgspec.Struct, frozen=True):
    """What one module says to one question.

    `code` names the reason (`STE-SHARED-TYPE`, `CW-CONFLICT`), `reason` words it in one sentence
    by the code that decided, `rule` is the place in the policy. `granted` lists the permissions
    that were granted of those asked, so a partial refusal can be shown.

    The rest is for the trail, from modules that know access vectors; others leave it empty.
    `auditallow` and `dontaudit` name what, of the permissions asked, the policy says to record
    when granted, and not to record when refused. With `permissive` what is not granted was let
    pass all the same. `contexts` are source and target as that policy writes them, and empty
    where it lacks a side, the class or every permission: then there is nothing it could say.
    """

    module: str
    allowed: bool
    code: str
    reason: str
    rule: Rule = Rule("")
    granted: Few[str] = ()
    auditallow: Few[str] = ()
    dontaudit: Few[str] = ()
    permissive: bool = False
    contexts: Few[str] = ()


class Decision(msgspec.Struct, frozen=True):
    """The stack's answer to one request: allowed if every module allows."""

    request: Request
    allowed: bool
    answers: Few[Answer]
    generation: int


class Verdict(msgspec.Struct, frozen=True):
    """The answer to a whole hook: allowed if every decision and every admission is.

    `decisions` holds the answer to each question of the hook in the hook's order; `admission`
    the modules' answers to the Chinese Wall question where the hook asks it.
    """

    hook: str
    allowed: bool
    decisions: Few[Decision]
    admission: Few[Answer]
    generation: int
