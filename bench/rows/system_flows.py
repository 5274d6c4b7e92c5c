"""The graph of a system whose domains all have different labels, against asking hook by hook.

The rule: both sides ask the same modules about the same pairs, in one process and in turn, and
must make the same graph, or there is no row.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from bench.measure import Row, compare
from skerry.errors import SkerryError
from skerry.node.flows import SystemFlows
from skerry.node.setup import Setup, load_setup
from tests.support import policies

DOMAINS = 200
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
