"""Small policies that tests compile and ask by name."""

from __future__ import annotations

from pathlib import Path

from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.labelling import Kind, Labelling
from skerry.xsm.flask.model import FlaskPolicy, Flavour
from skerry.xsm.flask.server import SecurityServer
from tests.support.policies import Target, compile_cil, compile_conf

LEVELS = """
sensitivity s0 alias public; sensitivity s1; dominance { s0 s1 }
category c0; category c1 alias red; category c2; category c3;
level s0:c0.c2; level s1:c0.c3;
mlsconstrain file write (l1 domby l2);
"""


def conf(body: str, *, mls: bool = False, head: str = "", target: Target = "selinux") -> str:
    """Return a policy in the kernel language around a body of rules, users included in it."""
    actor = "process" if target == "selinux" else "domain"
    sids = (
        ("kernel",)
        if target == "selinux"
        else (
            *("xenboot", "xen", "dom0", "domio", "domxen", "unlabeled", "security", "ioport"),
            *("iomem", "irq", "device", "domU", "domDM"),
        )
    )
    level = ":s0" if mls else ""
    return "\n".join(
        [
            *(f"class {name}" for name in (actor, "file", "event", "link_socket")),
            *(f"sid {name}" for name in sids),
            f"class {actor} {{ transition dyntransition signal }}",
            "class file { read write ioctl }",
            "class event { create send }",
            "class link_socket { send }",
            head,
            LEVELS if mls else "",
            "type first_t;",
            body,
            *(f"sid {name} one_u:object_r:first_t{level}" for name in sids),
            "",
        ]
    )


class Asked:
    """A compiled policy that is asked by names."""

    def __init__(
        self, policy: FlaskPolicy, booleans: dict[str, bool], flavour: Flavour | None
    ) -> None:
        states = {b.value: booleans[b.name] for b in policy.booleans.values() if b.name in booleans}
        self.policy = policy
        self.server = SecurityServer(policy, states, flavour)
        self.contexts = Contexts(policy)
        self.labelling = Labelling(self.server, self.contexts)

    def names(self, source: str, target: str, tclass: str) -> tuple[str, ...]:
        """Return the permissions that are allowed."""
        return self.vectors(source, target, tclass)[0]

    def vectors(self, source: str, target: str, tclass: str) -> tuple[tuple[str, ...], ...]:
        """Return the names that are allowed, audited when granted, and not audited if refused."""
        item = self.policy.class_named(tclass)
        assert item
        one, two = self.contexts.parse(source), self.contexts.parse(target)
        found = self.server.vectors(one, two, item.value)
        return tuple(item.names(v) for v in (found.allowed, found.auditallow, found.dontaudit))

    def label(
        self, source: str, target: str, tclass: str, kind: Kind = "transition", name: str = ""
    ) -> str:
        """Return the context of a new object."""
        item = self.policy.class_named(tclass)
        assert item
        one, two = self.contexts.parse(source), self.contexts.parse(target)
        return self.contexts.text(self.labelling.new_context(one, two, item, kind, name))

    def value(self, kind: str) -> int:
        """Return the value of a type."""
        return next(t.value for t in self.policy.types.values() if t.name == kind)


def ask(
    scratch: Path,
    source: str,
    *,
    version: int = 33,
    target: Target = "selinux",
    booleans: dict[str, bool] | None = None,
    flavour: Flavour | None = None,
    flags: tuple[str, ...] = (),
) -> Asked:
    """Compile a policy, in CIL if it begins with a bracket, and return it."""
    to = scratch / f"policy.{version}"
    if source.startswith("("):
        path = compile_cil(source, to, target, version, "-N", *flags)
    else:
        mls = "sensitivity" in source
        path = compile_conf(source, to, target, version, *flags, mls=mls)
    policy = read_policydb(path.read_bytes(), path.name)
    return Asked(policy, booleans or {}, flavour)
