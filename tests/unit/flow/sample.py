"""Small policies at random, and their flows by a reading of the rules that is too simple to err."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from skerry.flow.bits import picked
from skerry.flow.graph import Graph
from skerry.flow.permission_map import PermissionMap
from skerry.policy.load import load_policy
from skerry.xsm.flask.model import ALLOW, FlaskPolicy, TeRule, values
from skerry.xsm.flask.module import FlaskModule
from tests.support.policies import compile_conf

HEAD = """\
class process
class file
class dir
sid kernel
sid security
class process { signal fork transition ptrace sigchld }
class file { read write getattr append execute lock }
class dir { search add_name read }
"""
PERMISSIONS = {
    "process": ["signal", "fork", "transition", "ptrace", "sigchld"],
    "file": ["read", "write", "getattr", "append", "execute", "lock"],
    "dir": ["search", "add_name", "read"],
}


def source(seed: int) -> str:
    """Return a policy's text: types with attributes, rules, booleans and conditional rules."""
    chance = random.Random(seed)
    types = [f"t{n}_t" for n in range(chance.randrange(4, 12))]
    attributes = [f"a{n}" for n in range(3)]
    lines = [HEAD, *(f"attribute {name};" for name in attributes)]
    for name in types:
        held = chance.sample(attributes, chance.randrange(3))
        lines.append(f"type {', '.join([name, *held])};")
    lines += ["bool one false;", "bool two true;", "role r;"]
    lines.append(f"role r types {{ {' '.join(types)} }};")

    def rule() -> str:
        tclass = chance.choice(list(PERMISSIONS))
        held = chance.sample(PERMISSIONS[tclass], chance.randrange(1, 3))
        sides = [chance.choice([*types, *types, *attributes]) for _ in range(2)]
        return f"allow {sides[0]} {sides[1]}:{tclass} {{ {' '.join(held)} }};"

    lines += [rule() for _ in range(chance.randrange(4, 20))]
    for condition in ("one", "two", "one && !two"):
        lines.append(f"if ({condition}) {{ {rule()} }} else {{ {rule()} }}")
    lines += ["user u roles r;", f"sid kernel u:r:{types[0]}", f"sid security u:r:{types[0]}"]
    return "\n".join(lines) + "\n"


def compiled(seed: int, folder: Path) -> Path:
    """Compile a policy at random."""
    return compile_conf(source(seed), folder / f"policy-{seed}", "selinux", 33)


def loaded(path: Path, booleans: Mapping[str, bool] | None = None) -> FlaskModule:
    """Load a FLASK policy, with booleans set."""
    module = load_policy(path)
    assert isinstance(module, FlaskModule)
    return module.with_booleans(booleans or {})


def pairs(graph: Graph) -> set[tuple[str, str]]:
    """Return every flow of a graph as a pair of names."""
    rows = zip(graph.names, graph.rows, strict=True)
    return {(name, sink) for name, row in rows for sink in graph.named(row)}


def handed_pairs(names: Sequence[str], handed: Iterable[tuple[int, int]]) -> set[tuple[str, str]]:
    """Return each pair of labels of some sets that a checker is handed, but for one label's own."""
    return {
        (one, two)
        for senders, receivers in handed
        for one in picked(names, senders)
        for two in picked(names, receivers)
        if one != two
    }


def by_reading(
    policy: FlaskPolicy, rules: list[TeRule], permission_map: PermissionMap, weight: int
) -> set[tuple[str, str]]:
    """Return the flows of some rules, one pair of types and one permission at a time."""
    types = [kind for kind in policy.types.values() if not kind.attribute]
    found = set()
    for one, two, tclass, kind, vector in rules:
        if kind != ALLOW:
            continue
        known = policy.classes[tclass]
        flows = [permission_map.classes[known.name][name] for name in known.names(vector)]
        ways = {flow.direction for flow in flows if flow.weight >= weight}
        for subject in types:
            for target in types:
                has = one in values(policy.attributes[subject.value])
                if not (has and two in values(policy.attributes[target.value])):
                    continue
                if ways & {"w", "b"}:
                    found.add((subject.name, target.name))
                if ways & {"r", "b"}:
                    found.add((target.name, subject.name))
    return {(one, two) for one, two in found if one != two}
