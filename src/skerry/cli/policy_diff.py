"""`skerry policy diff`: what becomes allowed and what denied, or which flows appear and vanish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from skerry.cli.common import json_option, parse_booleans
from skerry.cli.flow_options import Source, counting_options
from skerry.wire.escape import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from skerry.policy.difference import Change
    from skerry.xsm.module import SecurityModule

_LISTED = 12


@click.command()
@click.argument("old")
@click.argument("new")
@click.option("--system", metavar="SYSTEM", help="What changes for the domains of SYSTEM instead.")
@click.option(
    "--flows",
    is_flag=True,
    help="Which flows appear and vanish, direct or by a chain. The options below say of policies"
    " what counts as a flow; what only one of the two has is left out or set there.",
)
@counting_options
@json_option
def diff(
    counting: Source, old: str, new: str, system: str | None, flows: bool, as_json: bool
) -> None:
    """Show what becomes allowed and what denied from the policy OLD to NEW, by names.

    Every pair of types is compared, booleans as the files set them; what decides beside the allow
    rules is compared as it is written. With a system, the operations on its domains are, with all
    that decides.
    """
    from skerry.node.changes import system_changes
    from skerry.policy.difference import differences
    from skerry.policy.load import load_policy

    if counting != Source() and (system or not flows):
        words = "the options that say what counts as a flow go with --flows of policies alone"
        raise click.UsageError(words)
    policies = load_policy(old), load_policy(new)
    if flows:
        found = _flow_changes(system, *policies, counting)
    else:
        found = system_changes(Path(system), *policies) if system else differences(*policies)
    count = 0
    for change in found:
        count += 1
        click.echo(_change_json(change) if as_json else _change_text(change))
    if not count and not as_json:
        click.echo("no difference")


def _flow_changes(
    system: str | None, old: SecurityModule, new: SecurityModule, counting: Source
) -> Iterator[Change]:
    from skerry.node.flow_changes import (
        policy_flow_changes,
        set_in_either,
        system_flow_changes,
    )

    if system:
        return system_flow_changes(Path(system), old, new)
    old, new = set_in_either((old, new), parse_booleans(counting.boolean))
    options = counting.options()
    return policy_flow_changes(old, new, msgspec.structs.replace(options, exclude=counting.exclude))


def _change_json(change: Change) -> str:
    return json.dumps(
        {
            "effect": change.effect,
            "kind": change.kind,
            "sources": list(change.sources),
            "targets": list(change.targets),
            "class": change.tclass,
            "permissions": list(change.permissions),
            "text": change.text,
        }
    )


def _change_text(change: Change) -> str:
    from skerry.xsm.hooks import HOOKS

    sign = "+" if change.effect in ("allowed", "added") else "-"
    if change.text:
        word = "" if change.text.endswith(";") else f"{change.kind} "
        return f"{sign} {change.effect}: {word}{escape(change.text)}"
    sources, targets = _set_text(change.sources), _set_text(change.targets)
    if change.kind in HOOKS:
        return f"{sign} {change.effect}: {sources} -> {targets}: {HOOKS[change.kind].what}"
    if change.kind in ("flow", "reach"):
        way = "directly" if change.kind == "flow" else "over some chain"
        return f"{sign} {change.effect}: {sources} -> {targets} {way}"
    if change.kind != "allow":
        return f"{sign} {change.effect}: {sources} {change.kind} {targets}"
    permissions = " ".join(change.permissions)
    return f"{sign} {change.effect}: {sources} {targets}:{change.tclass} {{ {permissions} }}"


def _set_text(names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return names[0]
    more = len(names) - _LISTED
    shown = [*names[:_LISTED], *([f"(and {more} more)"] if more > 0 else [])]
    return f"{{ {' '.join(shown)} }}"
