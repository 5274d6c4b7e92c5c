"""`skerry policy replay`: each decision of an audit trail again, under another policy."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from skerry.cli.common import counted, json_option, parse_booleans, policies_option
from skerry.errors import SkerryError
from skerry.wire.escape import escape

if TYPE_CHECKING:
    from skerry.node.replay import Answered, Replay


@click.command()
@policies_option
@click.option(
    "--boolean",
    "booleans",
    multiple=True,
    metavar="NAME=0|1",
    help="Set a boolean all through, whatever the trail says of it. [repeatable]",
)
@click.option("--all", "show_all", is_flag=True, help="Show every decision, not only the changed.")
@json_option
@click.argument("trail", metavar="AUDIT", type=click.Path(path_type=Path))
def replay(
    policies: tuple[str, ...],
    booleans: tuple[str, ...],
    show_all: bool,
    as_json: bool,
    trail: Path,
) -> None:
    """Ask each decision of the trail AUDIT again under other policies, and show what changes.

    Starts are asked beside the domains that ran then, exchanges with what was touched by then, as
    far as the trail tells. Booleans that were set then (`set-boolean`, an alarm) are set here from
    the same record on, where the policies have them. With --json every decision is shown.
    """
    from skerry.node.replay import Replay
    from skerry.policy.source import load_stack

    asked = Replay(load_stack(policies), parse_booleans(booleans))
    counts, broken = asyncio.run(_replayed(asked, trail, show_all, as_json))
    same = counts["same"]
    words = [counted(sum(counts.values()), "decision"), f"{same} the same"]
    words += [f"{counts['denied']} now denied", f"{counts['allowed']} now allowed"]
    if asked.skipped:
        words.append(f"{counted(asked.skipped, 'refusal')} that no policy decided")
    click.echo(", ".join(words), err=True)
    if broken:
        message = f"{trail}: {counted(broken, 'broken record')} left out"
        raise SkerryError(message, fix="run 'skerry audit verify'")


async def _replayed(
    asked: Replay, trail: Path, show_all: bool, as_json: bool
) -> tuple[dict[str, int], int]:
    from skerry.audit.chain import BrokenLinkError, open_line
    from skerry.audit.read import read_lines
    from skerry.audit.record import RecordError

    counts = {"same": 0, "denied": 0, "allowed": 0}
    broken = 0
    for untrusted_line in read_lines(trail):
        try:
            answered = await asked.ask(open_line(untrusted_line))
        except (BrokenLinkError, RecordError):
            broken += 1
            continue
        if answered is None:
            continue
        changed = answered.before is not answered.after
        counts[("allowed" if answered.after else "denied") if changed else "same"] += 1
        if as_json:
            click.echo(json.dumps(msgspec.to_builtins(answered)))
        elif changed or show_all:
            click.echo(_text(answered))
    return counts, broken


def _text(answered: Answered) -> str:
    before, after = ("allowed" if yes else "denied" for yes in (answered.before, answered.after))
    change = f"{before}, now {after}" if before != after else f"still {after}"
    parties = ", ".join(f"{role} {escape(text)}" for role, text in answered.parties.items())
    why = f": {escape(answered.sentence)} [{escape(answered.code)}]" if answered.sentence else ""
    return f"record {answered.record}: {change}: {answered.hook} ({parties}){why}"
