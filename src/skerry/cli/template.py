"""`skerry image template`: list and remove the templates that domains are cloned from."""

from __future__ import annotations

import datetime

import click

from skerry.cli.common import emit, json_option, table
from skerry.node import paths
from skerry.wire.escape import escape


@click.group()
def template() -> None:
    """Templates of booted guests: list, remove."""


@template.command("list")
@json_option
def list_templates(as_json: bool) -> None:
    """List the templates, the one that was used last at the end."""
    from skerry.node.template_store import stored

    rows: list[dict[str, object]] = []
    for one in stored(paths.templates_dir()):
        kind = one.manifest.kind if one.manifest else None
        rows.append(
            {
                "template": one.key,
                "image": kind.image if kind else None,
                "label": kind.label if kind else None,
                "memory": kind.memory if kind else None,
                "cpus": kind.cpus if kind else None,
                "board": kind.board if kind else None,
                "accel": kind.accel if kind else None,
                "bytes": one.bytes,
                "used": int(one.used),
            }
        )
    if as_json:
        emit(rows)
        return
    headings = ("TEMPLATE", "IMAGE", "LABEL", "MEMORY", "CPUS", "BOARD", "ON DISK", "USED")
    table(headings, [_row(row) for row in rows])


def _row(row: dict[str, object]) -> tuple[object, ...]:
    used = datetime.datetime.fromtimestamp(int(str(row["used"]))).strftime("%Y-%m-%d %H:%M")
    if row["image"] is None:
        return (row["template"], "damaged", "", "", "", "", _mb(row["bytes"]), used)
    label = escape(str(row["label"])) or "(any)"
    words = (row["template"], escape(str(row["image"])), label, f"{int(str(row['memory'])) >> 20}M")
    return (*words, row["cpus"], row["board"], _mb(row["bytes"]), used)


def _mb(count: object) -> str:
    return f"{int(str(count)) / 1e6:.1f} MB"


@template.command("remove")
@click.argument("key", metavar="TEMPLATE")
def remove_template(key: str) -> None:
    """Remove a template, by its name or the beginning of it; the next start makes it anew.

    Domains that were cloned from it run on. A running node does not use it again.
    """
    from skerry.node.template_store import remove

    remove(paths.templates_dir(), key)
