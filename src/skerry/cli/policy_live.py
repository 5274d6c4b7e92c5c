"""`skerry policy load` and `set-boolean`: another policy for the running node.

The file is read here, with the rights of who types, and sent; the node reads no path for anybody.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from skerry.cli.common import ask, counted, json_option, parse_booleans
from skerry.wire.control import PolicyLoad, RaiseAlarm, SetBooleans
from skerry.wire.escape import escape

evict_option = click.option(
    "--evict", is_flag=True, help="Stop the domains that the new policy has no place for."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would fall.")


@click.command()
@click.argument("file")
@dry_run_option
@evict_option
@json_option
def load(file: str, dry_run: bool, evict: bool, as_json: bool) -> None:
    """Bring the policy FILE into force in place of the module's old one.

    What it refuses is cut before this returns. It holds until the node ends or `up` is given the
    system file again, which has its own. Where the system requires signed policies, FILE.sig goes
    along. What FILE asserts (see `policy check`) and what the system file asserts is proven
    before; where that fails, nothing changes.
    """
    from skerry.control.client import Client
    from skerry.node.paths import control_socket
    from skerry.policy.asserted import read_assertions
    from skerry.policy.load import policy_bytes
    from skerry.policy.signature import read_signature

    content, signature, asserted = policy_bytes(file), read_signature(file), read_assertions(file)
    client = Client(control_socket())
    client.send(PolicyLoad(str(Path(file).absolute()), evict, dry_run, signature, asserted))
    client.upload(content)
    _show(client.result(), as_json)


@click.command("set-boolean")
@click.argument("settings", nargs=-1, required=True, metavar="NAME=0|1...")
@dry_run_option
@evict_option
@json_option
def set_boolean(settings: tuple[str, ...], dry_run: bool, evict: bool, as_json: bool) -> None:
    """Set booleans of the FLASK policy in force, as one change of generation."""
    _show(ask(SetBooleans(parse_booleans(settings), evict, dry_run)), as_json)


@click.command()
@click.argument("name")
@json_option
def alarm(name: str, as_json: bool) -> None:
    """Apply the emergency set [alarm.NAME] of the system file, as one change of generation."""
    result = ask(RaiseAlarm(name))
    _show(result, as_json)
    if "failed" in result:
        click.echo(result["failed"]["text"], err=True)
        sys.exit(int(result["failed"]["exit_code"]))


def _show(untrusted: object, as_json: bool) -> None:
    result: Mapping[str, Any] = untrusted if isinstance(untrusted, dict) else {}
    if as_json:
        click.echo(json.dumps(result))
        return
    show_loaded(result)


def show_loaded(result: Mapping[str, Any]) -> None:
    """Print what a change of policy did."""
    if "generation" not in result:  # an alarm that set no booleans
        for fallen in result["evicted"]:
            click.echo(f"stopped: domain {fallen['domain']}: {escape(fallen['why'])}")
        return
    dry = result["dry_run"]
    be = "would be " if dry else ""
    comes = "would come into force" if dry else "is in force"
    click.echo(f"generation {result['generation']} {comes}")
    if result["assertions"]:
        click.echo(f"hold: {counted(result['assertions'], 'assertion')}")
    for warning in result["warnings"]:
        click.echo(f"warning: {escape(warning)}", err=True)
    for fallen in result["cut"]:
        click.echo(f"{be}cut: channel {fallen['channel']}: {escape(fallen['why'])}")
    for fallen in result["evicted"]:
        click.echo(f"{be}stopped: domain {fallen['domain']}: {escape(fallen['why'])}")
    for uid, label in result["operators"].items():
        click.echo(f"{be}shut out: operator uid {uid} ({escape(label)})")
    if result["sessions_cut"]:
        click.echo(f"cut: {counted(result['sessions_cut'], 'session')}")
    took = f" (record {result['record']}, {result['seconds'] * 1000:.1f} ms)"
    click.echo(f"{be}kept: {counted(result['kept'], 'channel')}{took}")
