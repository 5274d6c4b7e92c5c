"""The graph of a system whose domains all have different labels, and the checker's flows.

The rules: asking in bulk is measured against asking hook by hook, of the same modules in one
process and in turn, and both must make the same graph, or there is no row; a proof over many
domains begins at the system as it was loaded, and its certificate is checked, or there is none.
"""

from __future__ import annotations

import functools
import json
import random
import tempfile
import time
from pathlib import Path

from bench.measure import Row, compare, single
from skerry.errors import SkerryError
from skerry.flow.claim import parse_claim
from skerry.flow.proof import certificate, prove
from skerry.flow.verify import check
from skerry.node.flows import SystemFlows
from skerry.node.setup import Setup, load_setup
from tests.support import policies

DOMAINS = 200
MANY, PAIRS = 1_000, 25_000
ROUNDS = 5

_HEAD = (
    policies.XEN_CLASSES
    + """\
attribute domains;
attribute ends;
type op_t;
role r;
role r types op_t;
"""
)


def _setup(folder: Path, domains: int) -> Setup:
    """Load a system under a FLASK policy that lets a tenth of all pairs share memory."""
    chance = random.Random(1)
    types = [f"d{number}_t" for number in range(domains)]
    lines = [f"type {name}, domains; type {name}_end, ends;" for name in types]
    lines += ["role r types { domains ends };", "allow domains ends:event { create bind send };"]
    lines += ["allow ends domains:event bind;"]
    lines += [f"type_transition {name} domains:event {name}_end;" for name in types]
    for _ in range(domains * domains // 10):
        one, two = chance.sample(types, 2)
        lines.append(f"allow {one} {two}:grant {{ map_read map_write }};")
    lines += ["user u roles r;", "sid kernel u:r:op_t", "sid security u:r:op_t", ""]
    policies.compile_conf(_HEAD + "\n".join(lines), folder / "policy", "selinux", 33)
    system = ['name = "many"', 'policy = "policy"', "[operators]", '"uid:0" = "u:r:op_t"']
    for name in types:
        system += [f"[domains.{name[:-2]}]", f'label = "u:r:{name}"', 'machine = "simulator"']
    (folder / "system.toml").write_text("\n".join(system) + "\n")
    return load_setup(folder / "system.toml")


def graph() -> Row:
    """From the loaded system to its graph, 200 domains of 200 labels."""
    series: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
        setup = _setup(Path(folder), DOMAINS)
        for number in range(ROUNDS):
            rows = {}
            for plainly in (False, True) if number % 2 else (True, False):
                begin = time.perf_counter()
                made = SystemFlows(setup, plainly=plainly).graph()
                series[plainly].append(time.perf_counter() - begin)
                rows[plainly] = made.rows
            if rows[False] != rows[True]:
                raise SkerryError("the two ways to ask make different graphs")
    return compare("system-graph-vs-plain", "s", *series, "<= 0.25")


def _many(folder: Path) -> Setup:
    """Load a system under an ACM policy: 1,000 labels, of which 25,000 pairs share a type each.

    Nothing flows from a domain of an even number to one of an odd number.
    """
    chance = random.Random(1)
    held: list[list[str]] = [[] for _ in range(MANY)]
    for number in range(PAIRS):
        one, two = (2 * half + number % 2 for half in chance.sample(range(MANY // 2), 2))
        held[one].append(f"t{number}")
        held[two].append(f"t{number}")
    shown = [", ".join(f'"{name}"' for name in types) for types in held]
    every = ", ".join(f'"t{number}"' for number in range(PAIRS))
    policy = ["[policy]", 'name = "many"', 'version = "1.0"', 'bootstrap = "system"']
    policy += ['primary = "simple-type-enforcement"', "[simple-type-enforcement]"]
    policy += [f"types = [{every}]", "[labels.system]", f"ste = [{every}]"]
    system = ['name = "many"', 'policy = "policy.toml"', "[limits]", f"domains = {MANY}"]
    for number, types in enumerate(shown):
        policy += [f"[labels.d{number}]", f"ste = [{types}]"]
        system += [f"[domains.d{number}]", f'label = "d{number}"', 'machine = "simulator"']
    (folder / "policy.toml").write_text("\n".join(policy) + "\n")
    (folder / "system.toml").write_text("\n".join(system) + "\n")
    return load_setup(folder / "system.toml")


@functools.cache
def _proofs() -> tuple[list[float], list[float]]:
    """Return the milliseconds of some proofs and of the checks of their certificates, once."""
    claim = parse_claim("d0 -/-> d1")
    proving, checking = [], []
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
        setup = _many(Path(folder))
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            made = SystemFlows(setup).graph()
            proof = prove(made, claim)
            written = certificate(made.about, [proof])
            middle = time.perf_counter()
            asked = SystemFlows(setup, plainly=True)
            check(json.loads(written), asked.names, asked.evidence())
            proving.append((middle - begin) * 1e3)
            checking.append((time.perf_counter() - middle) * 1e3)
            if not proof.holds:
                raise SkerryError("the benchmark's claim does not hold")
    return proving, checking


def prove_ms() -> Row:
    """From the loaded system to a claim's certificate: 1,000 domains of 1,000 labels."""
    return single("system-prove-ms", "ms", _proofs()[0], "< 100")


def verify_ms() -> Row:
    """From the loaded system to that certificate checked, the flows read and asked anew."""
    return single("system-verify-ms", "ms", _proofs()[1], "< 50")
