"""Flask as a security module: a compiled policy, unmodified, decides.

The rules this module keeps: the answer is the security server's; a label that the policy does not
allow, a class or a permission that it lacks is a denial, except that an SELinux policy may say
`handle_unknown = allow` for classes and permissions (Xen denies those whatever the policy says);
a permissive source is allowed, and the answer says what would have been refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice, product

import msgspec

from skerry.errors import InputError, Problem, UnknownLabel
from skerry.label import MAX_LABEL
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.labelling import Labelling
from skerry.xsm.flask.model import (
    ALLOW,
    NO_RANGE,
    OBJECT_ROLE,
    Context,
    FlaskPolicy,
    PolicyClass,
    Range,
    TeRule,
    User,
)
from skerry.xsm.flask.reason import MODULE, Reasons
from skerry.xsm.flask.server import SecurityServer, Vectors
from skerry.xsm.module import Standing
from skerry.xsm.request import Answer, Rule

SECURITY = "security"
"""As a target: the policy itself, with the context that the policy gives its initial SID."""

_INITIAL = {"selinux": {"operator": 1, SECURITY: 2}, "xen": {"operator": 3, SECURITY: 7}}
"""The numbers of initial SIDs: `kernel` or `dom0`, and `security`."""

_MAX_CONTEXTS = 65_536
"""Most texts of contexts kept parsed; beyond it, they are forgotten and parsed anew."""

MAX_LABELS = 1_000
"""Most contexts of a FLASK policy that are listed; beyond it, the list ends."""

_MAX_TRIES = 200_000


class FlaskModule:
    """A compiled policy as a `SecurityModule`. Only what it remembers of questions changes."""

    def __init__(self, policy: FlaskPolicy, booleans: Mapping[str, bool] | None = None) -> None:
        """Take a policy, with booleans set by name. Raises `InputError` for an unknown boolean."""
        self._policy = policy
        values_of = {item.name: item.value for item in policy.booleans.values()}
        unknown = sorted(set(booleans or {}) - values_of.keys())
        if unknown:
            known = ", ".join(sorted(values_of)) or "none"
            message = f"the policy has no boolean {unknown[0]}; it has: {known}"
            raise InputError([Problem(policy.file, 0, message)])
        states = {values_of[name]: state for name, state in (booleans or {}).items()}
        self._server = SecurityServer(policy, states)
        self._contexts = Contexts(policy)
        self._labelling = Labelling(self._server, self._contexts)
        self._reasons = Reasons(self._server, self._contexts)
        self._classes = {tclass.name: tclass for tclass in policy.classes.values()}
        self._parsed: dict[str, Context] = {}
        self._wanted: dict[tuple[str, tuple[str, ...]], int] = {}
        # Only what differs from the file counts, so that setting a boolean back gives the old one.
        file_states = {item.value: item.state for item in policy.booleans.values()}
        changed = sorted(
            f"{policy.booleans[value].name}={int(state)}\n"
            for value, state in self._server.booleans.items()
            if state is not file_states[value]
        )
        whole = policy.digest + "\n" + "".join(changed)
        self._digest = hashlib.sha256(whole.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Return `flask`."""
        return MODULE

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the policy's file and of the booleans that differ from it."""
        return self._digest

    @property
    def policy(self) -> FlaskPolicy:
        """The model this module decides with."""
        return self._policy

    @property
    def classes(self) -> Mapping[str, PolicyClass]:
        """The policy's classes by name."""
        return self._classes

    def rules_in_force(self) -> Iterator[TeRule]:
        """Yield the rules that hold under the booleans as they are set."""
        yield from self._policy.rules
        yield from self._server.enabled

    def booleans(self) -> dict[str, bool]:
        """Return the booleans by name, as they are set."""
        items = self._policy.booleans
        return {items[value].name: state for value, state in self._server.booleans.items()}

    def with_booleans(self, booleans: Mapping[str, bool]) -> FlaskModule:
        """Return this policy with some booleans set. Raises `InputError` for an unknown one."""
        return FlaskModule(self._policy, {**self.booleans(), **booleans})

    def check_label(self, text: str, tclass: str) -> str:
        """Return the context. Raises `UnknownLabel` unless the policy allows it."""
        if text == SECURITY:
            raise UnknownLabel(f"{SECURITY!r} stands for the policy, not for a domain")
        self._context(text)
        return text

    def carry(self, text: str) -> str:
        """Return the context if this policy allows it; a policy renames nothing."""
        self._context(text)
        return text

    def labels(self) -> tuple[str, ...]:
        """Return contexts for domains: types that somebody may create, or relabel a domain to.

        With each, the roles and users that it may have; a range is the user's default level. What
        is too long for a label is left out. The list ends after `MAX_LABELS`, or after as much
        searching as a sound policy never takes.
        """
        policy = self._policy
        users = [user for user in policy.users.values() if self._has_short_level(user)]
        triples = product(self._domain_types(), policy.roles.values(), users)
        tries = islice(triples, _MAX_TRIES)
        contexts = (
            Context(user.value, role.value, kind, Range(user.default_level, user.default_level))
            for kind, role, user in tries
            if role.value != OBJECT_ROLE and role.types >> kind - 1 & 1
        )
        sound = (context for context in contexts if not self._contexts.problem(context))
        texts = map(self._contexts.text, sound)
        return tuple(islice((text for text in texts if len(text) <= MAX_LABEL), MAX_LABELS))

    def lists_every_label(self) -> bool:
        """Tell whether `labels` is whole: neither levels nor a limit leave contexts out."""
        policy = self._policy
        triples = len(self._domain_types()) * len(policy.roles) * len(policy.users)
        return not policy.mls and triples <= _MAX_TRIES and len(self.labels()) < MAX_LABELS

    def object_labels(self) -> Iterator[str]:
        """Yield the contexts of `labels`' types with the role `object_r`, without levels.

        They are none that anybody gives a domain, but nothing forbids it.
        """
        for kind, user in product(self._domain_types(), self._policy.users):
            yield self._contexts.text(Context(user, OBJECT_ROLE, kind, NO_RANGE))

    def operator_label(self) -> str:
        """Return the context of domain 0 (Xen) or of the kernel (SELinux)."""
        return self._initial("operator")

    def decide(
        self, subject: str, target: str, tclass: str, permissions: Collection[str]
    ) -> Answer:
        """Decide one request; every unreadable part of it is a denial, never an exception."""
        asked = tuple(sorted(set(permissions)))
        try:
            source, other = self._context(subject), self._context(target)
        except UnknownLabel as error:
            return self._deny("LABEL-UNKNOWN", error.message)
        known = self._classes.get(tclass)
        if known is None or not asked:
            return self._unknown(known, tclass, asked, asked)
        names = set(known.permissions) - {""}
        lacking = tuple(name for name in asked if name not in names)
        unknown = self._unknown(known, tclass, asked, lacking) if lacking else None
        if unknown and (not unknown.allowed or lacking == asked):
            return unknown
        vectors = self._server.vectors(source, other, known.value)

        def within(vector: int) -> tuple[str, ...]:
            return tuple(n for n in asked if n in names and known.vector(frozenset({n})) & vector)

        granted = tuple(sorted({*lacking, *within(vectors.allowed)}))
        permissive = self._server.permissive(source.type)
        if granted == asked:
            answer = unknown or self._reasons.allowed(source, other, known, asked)
        else:
            answer = self._reasons.denied(source, other, known, asked, granted)
            if permissive:
                answer = self._let_pass(answer, source)
        return msgspec.structs.replace(
            answer,
            auditallow=within(vectors.auditallow),
            dontaudit=within(vectors.dontaudit),
            permissive=permissive,
            contexts=(self._contexts.text(source), self._contexts.text(other)),
        )

    def _let_pass(self, refusal: Answer, source: Context) -> Answer:
        name = self._policy.type_name(source.type)
        reason = f"{name} is permissive; otherwise: {refusal.reason}"
        return msgspec.structs.replace(refusal, allowed=True, code="TYPE-PERMISSIVE", reason=reason)

    def allows(self, subject: str, target: str, tclass: str, permissions: tuple[str, ...]) -> bool:
        """Tell whether `decide` would allow it, without its reasons; for many questions at once."""
        key = tclass, permissions
        wanted = self._wanted.get(key)
        if wanted is None:
            wanted = self._wanted[key] = self._vector(tclass, permissions)
        if not wanted:  # the policy does not know all of it
            return self.decide(subject, target, tclass, permissions).allowed
        try:
            source, other = self._context(subject), self._context(target)
        except UnknownLabel:
            return False
        if self._server.permissive(source.type):
            return True
        given = self._server.vectors(source, other, self._classes[tclass].value).allowed
        return given & wanted == wanted

    def _vector(self, tclass: str, permissions: tuple[str, ...]) -> int:
        """Return the vector of some permissions, 0 if the policy lacks the class or one of them."""
        known = self._classes.get(tclass)
        if known is None or not set(permissions) <= set(known.permissions) - {""}:
            return 0
        return known.vector(frozenset(permissions))

    def vectors(self, subject: str, target: str, tclass: str) -> Vectors:
        """Return the vectors of a class for two contexts.

        Raises `UnknownLabel`, and `KeyError` for a class that the policy lacks.
        """
        value = self._classes[tclass].value
        return self._server.vectors(self._context(subject), self._context(target), value)

    def transition(self, subject: str, target: str, tclass: str) -> str:
        """Return the context of a new object. Raises `Denied` if the policy allows none."""
        source, other = self._context(subject), self._context(target)
        known = self._classes.get(tclass)
        if known is None:
            raise UnknownLabel(f"the policy has no class {tclass}, so nothing of it has a label")
        return self._contexts.text(self._labelling.new_context(source, other, known, "transition"))

    def admit(self, label: str, standing: Standing) -> Answer:
        """Admit every start: Flask keeps no counts; a Chinese Wall is ACM's, stacked with it."""
        reason = "Flask has no Chinese Wall"
        return Answer(MODULE, True, "CW-NOT-IN-POLICY", reason, Rule("", self._policy.file))

    def admit_bind(self, labels: Sequence[str], standing: Standing) -> Answer:
        """Admit every exchange, as far as the Chinese Wall goes."""
        return self.admit(labels[0], standing)

    def touch(self, labels: Sequence[str], standing: Standing) -> Mapping[str, frozenset[str]]:
        """Remember nothing."""
        return {}

    def _context(self, text: str) -> Context:
        known = self._parsed.get(text)
        if known is None:
            known = self._contexts.parse(self._initial(text) if text == SECURITY else text)
            if len(self._parsed) >= _MAX_CONTEXTS:
                self._parsed.clear()
            self._parsed[text] = known
        return known

    def _initial(self, name: str) -> str:
        sid = _INITIAL[self._policy.flavour][name]
        context = self._policy.initial_context(sid)
        if context is None:
            raise UnknownLabel(f"the policy gives its initial SID {sid} ({name}) no context")
        return self._contexts.text(context)

    def _has_short_level(self, user: User) -> bool:
        if not self._policy.mls:
            return True
        return len(self._contexts.level_text(user.default_level)) <= MAX_LABEL

    def _domain_types(self) -> list[int]:
        wanted = {
            known.value: known.vector(frozenset({permission}))
            for name, permission in (("domain", "create"), ("domain2", "relabelto"))
            if (known := self._policy.class_named(name))
        }
        targets = 0
        for _, target, tclass, kind, vector in self.rules_in_force():
            if kind == ALLOW and vector & wanted.get(tclass, 0):
                targets |= 1 << target - 1
        return [
            kind.value
            for kind in self._policy.types.values()
            if not kind.attribute and self._policy.attributes[kind.value] & targets
        ]

    def _unknown(
        self,
        known: PolicyClass | None,
        tclass: str,
        asked: tuple[str, ...],
        lacking: tuple[str, ...],
    ) -> Answer:
        if not asked:
            return self._deny("PERMISSION-UNKNOWN", f"class {tclass}: nothing asked")
        what = f"permission {', '.join(lacking)} in class {tclass}" if known else f"class {tclass}"
        reason = f"the policy has no {what}"
        code = "PERMISSION-UNKNOWN" if known else "CLASS-UNKNOWN"
        rule = Rule(f"handle_unknown = {self._policy.handle_unknown}", self._policy.file)
        if self._policy.flavour == "xen":
            reason = f"{reason}; Xen denies what its policy does not know"
            return Answer(MODULE, False, code, reason, rule)
        if self._policy.handle_unknown != "allow":
            reason = f"{reason}, and it denies what it does not know"
            return Answer(MODULE, False, code, reason, rule)
        return Answer(
            MODULE, True, code, f"{reason}, and it allows what it does not know", rule, asked
        )

    def _deny(self, code: str, reason: str) -> Answer:
        return Answer(MODULE, False, code, reason, Rule("", self._policy.file))
