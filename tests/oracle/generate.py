"""Policies made at random from a seed, written in the kernel policy language or in CIL.

The rule this module keeps: a seed gives one policy, whatever the machine, but for what its
compiler no longer knows. What the compilers refuse is never written: two type rules that disagree,
classes of a target that it lacks.
"""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from tests.support.policies import Language, Target, compile_cil, compile_conf

_COMMON = ("read", "write", "append", "create", "relabelfrom", "relabelto")
_WIDE = tuple(f"p{number}" for number in range(32))
CLASSES: dict[Target, dict[str, tuple[str, ...]]] = {
    "selinux": {
        "process": ("transition", "dyntransition", "signal", "fork"),
        "file": (*_COMMON, "execute", "ioctl"),
        "dir": (*_COMMON, "search"),
        "stream_socket": ("send", "recv", "ioctl"),
        "wide": _WIDE,
    },
    "xen": {
        "domain": ("create", "transition", "destroy", "pause"),
        "event": ("bind", "send", "status", "create"),
        "grant": ("map_read", "map_write", "copy"),
        "security": ("load_policy", "setbool"),
        "wide": _WIDE,
    },
}
_SIDS: dict[Target, tuple[str, ...]] = {
    "selinux": ("kernel", "security", "unlabeled"),
    "xen": (
        *("xenboot", "xen", "dom0", "domio", "domxen", "unlabeled", "security", "ioport"),
        *("iomem", "irq", "device", "domU", "domDM"),
    ),
}
_TYPE_RULES = ("type_transition", "type_change", "type_member")
_RANGES = ("source low", "source high", "source low-high", "target low", "target low-high")

Expression = tuple["str | Expression", ...]
"""`("not", x)`, `("and", x, y)`, `("or", x, y)` or `(operator, left, right)`."""


class Rule(msgspec.Struct, frozen=True):
    """A rule of the kinds that conditional blocks may hold."""

    kind: str
    source: str
    target: str
    tclass: str
    given: tuple[str, ...]


class Made(msgspec.Struct):
    """A policy in terms of both languages."""

    target: Target
    mls: bool
    version: int
    unknown: str
    attributes: list[str]
    types: dict[str, list[str]]
    roles: dict[str, list[str]]
    dominance: tuple[str, list[str]] | None
    users: dict[str, tuple[list[str], int, int]]
    booleans: dict[str, bool]
    rules: list[Rule]
    conditionals: list[tuple[Expression, list[Rule], list[Rule]]]
    constraints: list[tuple[str, str, tuple[str, ...], Expression]]
    bounds: dict[str, str]
    permissive: list[str]
    role_allows: list[tuple[str, str]]
    role_transitions: list[tuple[str, str, str, str]]
    range_transitions: list[tuple[str, str, str, int, int]]
    named: list[tuple[str, str, str, str, str]]
    extended: list[tuple[str, str, str, str]]
    defaults: list[tuple[str, str, str]]


class _Maker:
    """Draws one policy. Levels are `s0` to `s3`; a level has all categories up to its rank."""

    def __init__(self, seed: int, target: Target, language: str) -> None:
        self.rand = rand = random.Random(f"{seed} {target} {language}")
        self.target: Target = target
        self.cil = language == "cil"
        self.mls = rand.random() < 0.7
        self.version = rand.choice((24, 30)) if target == "xen" else rand.choice(range(24, 34))
        self.classes = CLASSES[target]
        self.actor = "process" if target == "selinux" else "domain"
        self.attributes = [f"attr{n}" for n in range(rand.randint(2, 6))]
        self.types = {
            f"type{n}": [a for a in self.attributes if rand.random() < 0.35]
            for n in range(rand.randint(5, 18))
        }
        self.names = list(self.types)
        # checkpolicy accepts an attribute without types, and rules that name it.
        self.roles = {
            f"role{n}": [t for t in self.names if rand.random() < 0.6] or [self.names[0]]
            for n in range(rand.randint(2, 5))
        }
        self.booleans = {f"bool{n}": rand.random() < 0.5 for n in range(rand.randint(0, 4))}
        self.users = {f"user{n}": self._user() for n in range(rand.randint(2, 4))}
        self._ruled: set[tuple[str, str, str, str]] = set()

    def _user(self) -> tuple[list[str], int, int]:
        roles = [role for role in self.roles if self.rand.random() < 0.6]
        low, high = sorted(self.rand.choices(range(4), k=2))
        return roles or [self.rand.choice(list(self.roles))], low, high

    def _side(self) -> str:
        return self.rand.choice(self.attributes if self.rand.random() < 0.5 else self.names)

    def _class(self) -> str:
        return self.rand.choice((self.actor, self.actor, *self.classes))

    def _some(self, tclass: str) -> tuple[str, ...]:
        every = self.classes[tclass]
        return tuple(self.rand.sample(every, self.rand.randint(1, min(len(every), 8))))

    def rule(self) -> Rule | None:
        """Return an access rule or a type rule, None where it would contradict another."""
        tclass = self._class()
        if self.rand.random() < 0.8:
            kind = self.rand.choice(("allow",) * 6 + ("auditallow", "dontaudit"))
            target = "self" if self.rand.random() < 0.1 else self._side()
            return Rule(kind, self._side(), target, tclass, self._some(tclass))
        kind = self.rand.choice(_TYPE_RULES)
        source, target = self.rand.choice(self.names), self.rand.choice(self.names)
        if (kind, source, target, tclass) in self._ruled:
            return None
        self._ruled.add((kind, source, target, tclass))
        return Rule(kind, source, target, tclass, (self.rand.choice(self.names),))

    def rules(self, low: int, high: int) -> list[Rule]:
        """Return some rules."""
        drawn = (self.rule() for _ in range(self.rand.randint(low, high)))
        return [rule for rule in drawn if rule]

    def over_booleans(self, depth: int) -> Expression:
        """Return an expression over booleans."""
        chance = self.rand.random()
        if depth == 0 or chance < 0.4:
            return ("bool", self.rand.choice(list(self.booleans)))
        if chance < 0.55:
            return ("not", self.over_booleans(depth - 1))
        operator = self.rand.choice(("and", "or", "xor", "eq", "neq"))
        return (operator, self.over_booleans(depth - 1), self.over_booleans(depth - 1))

    def constraint(self, depth: int, mls: bool, third: bool) -> Expression:
        """Return a constraint's expression; the stack never gets deeper than four."""
        chance = self.rand.random()
        if depth == 0 or chance < 0.35:
            return self._term(mls, third)
        if chance < 0.5:
            return ("not", self.constraint(depth - 1, mls, third))
        both = (self.constraint(depth - 1, mls, third), self.constraint(depth - 1, mls, third))
        return (self.rand.choice(("and", "or")), *both)

    def _term(self, mls: bool, third: bool) -> Expression:
        rand = self.rand
        equal, wide = rand.choice(("eq", "neq")), rand.choice(("eq", "neq", "dom", "domby"))
        wide = rand.choice((wide, wide, "incomp"))
        if mls and rand.random() < 0.6:
            pairs = ("l1 l2", "l1 h2", "h1 l2", "h1 h2", "l1 h1", "l2 h2")
            left, right = rand.choice(pairs).split()
            return (wide, left, right)
        if rand.random() < 0.45:
            kind = rand.choice("urt")
            return (wide if kind == "r" else equal, f"{kind}1", f"{kind}2")
        side = rand.choice(("1", "2", "3") if third else ("1", "2"))
        # checkpolicy reads MLS constraints before the users.
        kind = rand.choice("rttt" if mls else "urttt")
        table = {"u": list(self.users), "r": list(self.roles), "t": [*self.names, *self.attributes]}
        return (equal, kind + side, rand.choice(table[kind]))

    def constraints(self) -> list[tuple[str, str, tuple[str, ...], Expression]]:
        """Return constraints of all four kinds: statement, class, permissions, expression."""
        found = []
        # checkpolicy wants one MLS constraint at least.
        for kind, least, most in (
            ("constrain", 0, 5),
            ("validatetrans", 0, 2),
            *((("mlsconstrain", 1, 5), ("mlsvalidatetrans", 0, 2)) if self.mls else ()),
        ):
            mls, third = kind.startswith("mls"), kind.endswith("trans")
            for _ in range(self.rand.randint(least, most)):
                tclass = self._class()
                given = () if third else self._some(tclass)
                found.append((kind, tclass, given, self.constraint(2, mls, third)))
        return found

    def bounds(self) -> dict[str, str]:
        """Return children and their parents; parents come earlier, so there is no circle."""
        found: dict[str, str] = {}
        depth = dict.fromkeys(self.names, 0)
        for place, child in enumerate(self.names):
            if place and self.rand.random() < 0.3:
                parent = self.rand.choice(self.names[:place])
                if depth[parent] < 2:
                    found[child] = parent
                    depth[child] = depth[parent] + 1
        return found

    def policy(self) -> Made:
        """Return the whole."""
        rand, roles = self.rand, list(self.roles)
        selinux = self.target == "selinux"
        rules = self.rules(15, 90)
        conditionals = [
            (self.over_booleans(2), self.rules(1, 8), self.rules(0, 5))
            for _ in range(rand.randint(0, 5) if self.booleans else 0)
        ]
        moves = {
            (rand.choice(roles), rand.choice(self.names), self._class()): rand.choice(roles)
            for _ in range(rand.randint(0, 6))
        }
        if not selinux or self.version < 26:
            # Older files can't name a class, and Xen looks at none.
            moves = {(r, t, self.actor): new for (r, t, _), new in moves.items()}
        spans = {
            (rand.choice(self.names), rand.choice(self.names), self._class()): sorted(
                rand.choices(range(4), k=2)
            )
            for _ in range(rand.randint(0, 8) if self.mls else 0)
        }
        named = {
            (rand.choice(self.names), rand.choice(self.names), "file", f"name{rand.randint(0, 3)}")
            for _ in range(rand.randint(0, 6) if selinux and self.version >= 25 else 0)
        }
        top = None if self.cil or rand.random() < 0.4 else ("role_top", rand.sample(roles, 2))
        defaults = [
            (f"default_{kind}", rand.choice(list(self.classes)), rand.choice(("source", "target")))
            for kind in ("user", "role", "type")
            if selinux and self.version >= 28 and rand.random() < 0.3
        ]
        if selinux and self.mls and self.version >= 28 and rand.random() < 0.7:
            defaults.append(("default_range", rand.choice(("file", "dir")), rand.choice(_RANGES)))
        extended = [
            (
                rand.choice(("allowxperm", "auditallowxperm", "dontauditxperm")),
                self._side(),
                self._side(),
                rand.choice(("0x8910-0x8915", "0x12", "0x1100-0x13ff")),
            )
            for _ in range(rand.randint(0, 4) if selinux and self.version >= 30 else 0)
        ]
        return Made(
            self.target,
            self.mls,
            self.version,
            rand.choice(("deny", "reject", "allow")),
            self.attributes,
            self.types,
            self.roles,
            top,
            self.users,
            self.booleans,
            rules,
            conditionals,
            self.constraints(),
            # checkpolicy refuses whatever bounds would mask; secilc can be told not to.
            self.bounds() if self.cil and rand.random() < 0.7 else {},
            [t for t in self.names if rand.random() < 0.1],
            [(a, b) for a in roles for b in roles if rand.random() < 0.3],
            [(*key, new) for key, new in moves.items()],
            [(*key, low, high) for key, (low, high) in spans.items()],
            [(*key, rand.choice(self.names)) for key in sorted(named)],
            extended,
            defaults,
        )


def draw(seed: int, target: Target, language: Language) -> Made:
    """Return the policy of a seed."""
    return _Maker(seed, target, language).policy()


def compiled(seed: int, target: Target, language: Language, scratch: Path) -> Path:
    """Return the compiled policy of a seed, made in a directory of scratch files."""
    made = draw(seed, target, language)
    to = scratch / f"{target}-{language}-{seed}.{made.version}"
    if language == "cil":
        return compile_cil(cil(made), to, target, made.version, "-N")
    flags = ("-U", made.unknown)
    try:
        return compile_conf(conf(made), to, target, made.version, *flags, mls=made.mls)
    except RuntimeError as error:
        # The checkpolicy of Debian 13 has unlearnt role dominance; the format has not.
        if "at token 'dominance'" not in str(error) or not made.dominance:
            raise
    made.dominance = None
    return compile_conf(conf(made), to, target, made.version, *flags, mls=made.mls)


def _level(rank: int) -> str:
    return f"s{rank}:c0.c{rank}" if rank else "s0:c0"


def _context(made: Made, kind: str) -> str:
    user = next(iter(made.users))
    return f"{user}:object_r:{kind}" + (f":s{made.users[user][1]}" if made.mls else "")


_SIGNS = {"eq": "==", "neq": "!=", "and": "&&", "or": "||", "xor": "^"}


def _conf_booleans(expression: Expression) -> str:
    if expression[0] == "bool":
        return str(expression[1])
    parts = [_conf_booleans(part) for part in expression[1:] if not isinstance(part, str)]
    if expression[0] == "not":
        return f"(! {parts[0]})"
    return f"({parts[0]} {_SIGNS[str(expression[0])]} {parts[1]})"


def _conf_constraint(expression: Expression) -> str:
    operator, *rest = expression
    parts = [part if isinstance(part, str) else _conf_constraint(part) for part in rest]
    if operator == "not":
        return f"(not {parts[0]})"
    word = operator if operator in ("and", "or") else {"eq": "==", "neq": "!="}.get(str(operator))
    return f"({parts[0]} {word or operator} {parts[1]})"


def _conf_rule(rule: Rule) -> str:
    head = f"{rule.kind} {rule.source} {rule.target}:{rule.tclass}"
    if rule.kind in _TYPE_RULES:
        return f"{head} {rule.given[0]};"
    return f"{head} {{ {' '.join(rule.given)} }};"


def conf(made: Made) -> str:
    """Write a policy in the kernel policy language."""
    classes = CLASSES[made.target]
    out = [f"class {name}" for name in classes]
    out += [f"sid {name}" for name in _SIDS[made.target]]
    shared = made.target == "selinux"
    if shared:
        out.append(f"common shared {{ {' '.join(_COMMON)} }}")
    for name, permissions in classes.items():
        inherits = "inherits shared " if shared and permissions[:1] == _COMMON[:1] else ""
        own = [p for p in permissions if not (inherits and p in _COMMON)]
        out.append(f"class {name} {inherits}{{ {' '.join(own)} }}")
    for kind, tclass, value in made.defaults:
        out.append(f"{kind} {tclass} {value};")
    if made.mls:
        out += [f"sensitivity s{n};" for n in range(4)] + ["dominance { s0 s1 s2 s3 }"]
        out += [f"category c{n};" for n in range(4)]
        out += [f"level {_level(n)};" for n in range(4)]
        out += [_conf_statement(c) for c in made.constraints if c[0].startswith("mls")]
    out += [f"attribute {name};" for name in made.attributes]
    for name, attributes in made.types.items():
        out.append(f"type {', '.join([f'{name} alias {name}_alias', *attributes])};")
    out += [f"typebounds {parent} {child};" for child, parent in made.bounds.items()]
    out += [f"bool {name} {str(state).lower()};" for name, state in made.booleans.items()]
    out += [f"permissive {name};" for name in made.permissive]
    out += [f"role {name};" for name in made.roles]
    out += [f"role {name} types {{ {' '.join(types)} }};" for name, types in made.roles.items()]
    if made.dominance:
        inner = " ".join(f"role {name};" for name in made.dominance[1])
        out.append(f"dominance {{ role {made.dominance[0]} {{ {inner} }} }}")
    out += [f"allow {one} {two};" for one, two in made.role_allows]
    for role, kind, tclass, new in made.role_transitions:
        out.append(f"role_transition {role} {kind}:{tclass} {new};")
    out += [_conf_rule(rule) for rule in made.rules]
    for source, target, tclass, name, new in made.named:
        out.append(f'type_transition {source} {target}:{tclass} {new} "{name}";')
    for source, target, tclass, low, high in made.range_transitions:
        out.append(f"range_transition {source} {target}:{tclass} s{low} - {_level(high)};")
    for kind, source, target, numbers in made.extended:
        out.append(f"{kind} {source} {target}:file ioctl {{ {numbers} }};")
    for expression, yes, no in made.conditionals:
        out.append(f"if {_conf_booleans(('and', expression, expression))} {{")
        out += [_conf_rule(rule) for rule in yes]
        out += ["} else {", *(_conf_rule(rule) for rule in no)] if no else []
        out.append("}")
    for name, (roles, low, high) in made.users.items():
        extra = ["role_top"] if made.dominance else []
        level = f" level s{low} range s{low} - {_level(high)}" if made.mls else ""
        out.append(f"user {name} roles {{ {' '.join([*roles, *extra])} }}{level};")
    out += [_conf_statement(c) for c in made.constraints if not c[0].startswith("mls")]
    out += [f"sid {sid} {_context(made, 'type0')}" for sid in _SIDS[made.target]]
    return "\n".join(out) + "\n"


def _conf_statement(constraint: tuple[str, str, tuple[str, ...], Expression]) -> str:
    kind, tclass, permissions, expression = constraint
    given = f" {{ {' '.join(permissions)} }}" if permissions else ""
    return f"{kind} {tclass}{given} {_conf_constraint(expression)};"


def _cil_expression(expression: Expression) -> str:
    operator, *rest = expression
    if operator == "bool":
        return str(rest[0])
    parts = " ".join(part if isinstance(part, str) else _cil_expression(part) for part in rest)
    return f"({operator} {parts})"


def _cil_rule(rule: Rule) -> str:
    sides = f"{rule.source} {rule.target}"
    if rule.kind in _TYPE_RULES:
        return f"({rule.kind.replace('_', '')} {sides} {rule.tclass} {rule.given[0]})"
    return f"({rule.kind} {sides} ({rule.tclass} ({' '.join(rule.given)})))"


def _cil_level(rank: int) -> str:
    return f"(s{rank} ({' '.join(f'c{n}' for n in range(rank + 1))}))"


def cil(made: Made) -> str:
    """Write a policy in CIL."""
    classes, sids = CLASSES[made.target], _SIDS[made.target]
    out = [f"(mls {str(made.mls).lower()})", f"(handleunknown {made.unknown})"]
    out += [f"(class {name} ({' '.join(given)}))" for name, given in classes.items()]
    out.append(f"(classorder ({' '.join(classes)}))")
    out += [f"(sid {name})" for name in sids] + [f"(sidorder ({' '.join(sids)}))"]
    out += [f"(sensitivity s{n})" for n in range(4)] + ["(sensitivityorder (s0 s1 s2 s3))"]
    out += [f"(category c{n})" for n in range(4)] + ["(categoryorder (c0 c1 c2 c3))"]
    out += [f"(sensitivitycategory s{n} (range c0 c{n}))" for n in range(1, 4)]
    out.append("(sensitivitycategory s0 (c0))")
    for kind, tclass, value in made.defaults:
        out.append(f"({kind.replace('_', '')} {tclass} {value})")
    out += [f"(typeattribute {name})" for name in made.attributes]
    for name in made.types:
        out += [f"(type {name})", f"(typealias {name}_alias)"]
        out.append(f"(typealiasactual {name}_alias {name})")
    for name in made.attributes:
        members = [kind for kind, attributes in made.types.items() if name in attributes]
        out += [f"(typeattributeset {name} ({' '.join(members)}))"] if members else []
    out += [f"(typebounds {parent} {child})" for child, parent in made.bounds.items()]
    out += [f"(boolean {name} {str(state).lower()})" for name, state in made.booleans.items()]
    out += [f"(typepermissive {name})" for name in made.permissive]
    out += ["(role object_r)", *(f"(role {name})" for name in made.roles)]
    out += [f"(roletype {name} {kind})" for name, types in made.roles.items() for kind in types]
    out += [f"(roletype object_r {name})" for name in made.types]
    out += [f"(roleallow {one} {two})" for one, two in made.role_allows]
    out += [f"(roletransition {' '.join(parts)})" for parts in made.role_transitions]
    out += [_cil_rule(rule) for rule in made.rules]
    for source, target, tclass, name, new in made.named:
        out.append(f'(typetransition {source} {target} {tclass} "{name}" {new})')
    for source, target, tclass, low, high in made.range_transitions:
        span = f"((s{low}) {_cil_level(high)})"
        out.append(f"(rangetransition {source} {target} {tclass} {span})")
    for kind, source, target, numbers in made.extended:
        first, _, last = numbers.partition("-")
        written = f"(range {first} {last})" if last else f"({first})"
        short = kind.removesuffix("perm")
        out.append(f"({short} {source} {target} (ioctl file {written}))")
    for expression, yes, no in made.conditionals:
        out.append(f"(booleanif {_cil_expression(('and', expression, expression))}")
        out.append("(true " + " ".join(map(_cil_rule, yes)) + ")")
        out.append(("(false " + " ".join(map(_cil_rule, no)) + ")" if no else "") + ")")
    for name, (roles, low, high) in made.users.items():
        out += [f"(user {name})", *(f"(userrole {name} {role})" for role in roles)]
        out.append(f"(userrole {name} object_r)")
        out.append(f"(userlevel {name} (s{low}))")
        out.append(f"(userrange {name} ((s{low}) {_cil_level(high)}))")
    for kind, tclass, permissions, expression in made.constraints:
        what = f"({tclass} ({' '.join(permissions)}))" if permissions else tclass
        out.append(f"({kind} {what} {_cil_expression(expression)})")
    user, (_, lowest, _) = next(iter(made.users.items()))
    initial = f"((s{lowest}) (s{lowest}))"
    out += [f"(sidcontext {sid} ({user} object_r type0 {initial}))" for sid in sids]
    return "\n".join(out) + "\n"
