"""`ps` and `channels`: what runs and what may talk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from skerry.cli.common import ago, ask, emit, json_option, size, table
from skerry.wire.control import Channels, Health, Ps

REPLICA = "audit replica"
DENIED = "what needs it is denied until it is back"


@click.command()
@json_option
def ps(as_json: bool) -> None:
    """List the domains: name, label, machine, state, memory, since, and why one ended.

    OFFERS, where there is any: the services that a domain serves.
    """
    rows = ask(Ps())
    ill = [helper for helper in ask(Health()) if helper["state"] != "running"]
    if as_json:
        emit([*rows, *ill])
        return
    offers = any(row["offers"] for row in rows)
    table(
        (
            *("NAME", "LABEL", "MACHINE", "STATE", "MEMORY", "SINCE"),
            *(["OFFERS"] if offers else []),
            "REASON",
        ),
        [
            (
                row["name"],
                row["label"],
                row["machine"],
                row["state"],
                size(row["memory"]),
                ago(row["seconds"]) if row["seconds"] is not None else "-",
                *([", ".join(row["offers"]) or "-"] if offers else []),
                row["reason"] or "",
            )
            for row in rows
        ],
    )
    for helper in ill:
        words = f"the {helper['helper']} is {helper['state']}"
        after = "nothing waits for it" if helper["helper"] == REPLICA else DENIED
        click.echo(f"warning: {words}: {after}", err=True)


@click.command()
@click.option(
    "--verbose", is_flag=True, help="Also the state, and what goes back over one-way channels."
)
@json_option
def channels(verbose: bool, as_json: bool) -> None:
    """List the channels: number, kind, source → sink (or ↔), since when, how long, decided by.

    ASKED is the service by whose name the source's guest asked for it.
    """
    rows = ask(Channels())
    if as_json:
        emit(rows)
        return
    more = ("STATE", "OVERFLOW", "BACK") if verbose else ()
    table(
        ("ID", "KIND", "BETWEEN", "PORT", "ASKED", "GENERATION", "SINCE", "LEFT", "RECORD", *more),
        [
            (
                row["id"],
                row["kind"],
                f"{row['source']} {_arrow(row)} {row['sink']}",
                row["port"],
                row["asked"] or "-",
                row["generation"],
                ago(row["seconds"]),
                "-" if row["left_s"] is None else ago(row["left_s"]),
                row["record"],
                *(_backwards(row) if verbose else ()),
            )
            for row in rows
        ],
    )
    if verbose and any(row["back_bits_s"] for row in rows):
        click.echo(
            "BACK is what a sink can tell the source by letting it wait, if both QEMUs are in an "
            "attacker's hands: as measured on the machine that Skerry is made on, no bound for "
            "this one (`./run bench oneway-back-kbit-s` measures here). overflow = drop leaves "
            "none; what only reads a resource has no such setting."
        )


def _arrow(row: Mapping[str, Any]) -> str:
    """Say which way bytes go; what only reads a resource gets them from it."""
    if not row["one_way"]:
        return "↔"
    return "→" if row["kind"] in ("stream", "memory") else "←"


def _backwards(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what `--verbose` adds: the state, the setting, and what can come back."""
    if not row["one_way"]:
        return row["state"], "-", "all"
    if row["overflow"] is None:
        return row["state"], "-", "-"
    back = f"~{row['back_bits_s'] // 1000} kbit/s" if row["back_bits_s"] else "none"
    return row["state"], row["overflow"], back
