"""`check` and `plan`: what is wrong with a system, and what `up` would do; both start nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from skerry.cli.common import counted, emit, json_option
from skerry.wire.escape import escape

if TYPE_CHECKING:
    from skerry.node.plan import Step
    from skerry.node.setup import Setup

system_argument = click.argument("system", type=click.Path(path_type=Path))


def checked(path: Path) -> Setup:
    """Load a system, its policy and its assertions.

    Raises `InputError` with every problem, `Refused` where an assertion does not hold.
    """
    from skerry.node.assertions import load_proven

    return load_proven(path)


def planned(setup: Setup) -> list[Step]:
    """Return what `up` would do with this system."""
    from skerry.node.paths import history_file
    from skerry.node.plan import make_plan
    from skerry.policy.history import FileHistory, MemoryHistory
    from skerry.policy.manager import PolicyManager

    kept = MemoryHistory(FileHistory(history_file()).load())
    manager = PolicyManager(setup.stack, kept)
    return asyncio.run(make_plan(setup, manager))


@click.command()
@system_argument
@json_option
def check(system: Path, as_json: bool) -> None:
    """Parse SYSTEM and its policy and prove its assertions; report every problem.

    A wrong file is exit code 2, an assertion that does not hold 3, with its path and rules. What
    the policy refuses is a warning: `up` would start the rest without it.
    """
    from skerry.node.assertions import count

    setup = checked(system)
    refused = [s for s in planned(setup) if not s.allowed and not s.later]
    refused_words = [f"refused by the policy: {s.action} {s.what}: {s.why}" for s in refused]
    found = {
        "name": setup.system.name,
        "domains": len(setup.system.domains),
        "channels": len(setup.system.channels),
        "services": len(setup.system.names),
        "assertions": count(setup.policy, setup),
        "policy": setup.stack.digest,
        "warnings": [*map(str, setup.warnings), *refused_words],
    }
    if as_json:
        emit([found])
        return
    for warning in [*setup.warnings, *refused_words]:
        click.echo(f"warning: {warning}", err=True)
    counts = [
        counted(len(setup.system.domains), "domain"),
        counted(len(setup.system.channels), "channel"),
        counted(count(setup.policy, setup), "assertion") + " proven",
    ]
    if setup.system.names:
        counts.insert(2, counted(len(setup.system.names), "service"))
    click.echo(f"{system}: {', '.join(counts)}, no errors")


@click.command()
@system_argument
@json_option
def plan(system: Path, as_json: bool) -> None:
    """Show what `up` would start, bind, cut and refuse, and why; do nothing.

    While a system runs here, this is the difference between it and SYSTEM.
    """
    from skerry.cli.change import change, find_node

    node = find_node()
    if node is not None:
        change(node, system, evict=False, dry_run=True, as_json=as_json)
        return
    setup = checked(system)
    for warning in setup.warnings:
        click.echo(f"warning: {warning}", err=True)
    steps = planned(setup)
    if as_json:
        emit(msgspec.to_builtins(step) for step in steps)
        return
    for step in steps:
        click.echo(step_lines(msgspec.to_builtins(step)))


def step_lines(step: Mapping[str, Any]) -> str:
    """Write a step of a plan, with why it is allowed or refused on a line of its own."""
    word = step["action"] if step["allowed"] else "refuse"
    later = " (when it is started by hand)" if step["later"] else ""
    code = f" [{step['code']}]" if step["code"] else ""
    why = f"\n        {escape(step['why'])}{code}" if step["why"] else ""
    return f"{word:7} {escape(step['what'])}{later}{why}"
