"""`audit` and `why`: read, prove, export and explain the trail.

The trail is files; only what asks the replica needs a running node. What stands in it may come from
guests, so it is escaped wherever people see it; as JSON it is ASCII anyway.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from skerry.audit.chain import BrokenLinkError, Link, is_hash, open_line, verify
from skerry.audit.checkpoint import Checks, read_public
from skerry.audit.export import AvcExport
from skerry.audit.head import read_head
from skerry.audit.read import (
    MAX_TAIL,
    find_line,
    first_kept,
    follow_lines,
    number_of,
    read_lines,
    read_tail,
)
from skerry.audit.record import Record, RecordError, parse_record, record_json
from skerry.audit.replica import MAX_EXPORT
from skerry.audit.show import details, summary
from skerry.cli.common import ask, counted, emit, json_option
from skerry.errors import NotFound, SkerryError
from skerry.node.paths import audit_file, audit_head
from skerry.wire.control import Replica, ReplicaRecords
from skerry.wire.escape import escape
from skerry.xsm.explain import Explanation
from skerry.xsm.request import Answer, Rule

file_option = click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path),
    help="A trail other than this node's.",
)


@click.group()
def audit() -> None:
    """Read, export and verify the audit trail."""


@audit.command()
@click.option(
    "-n",
    "count",
    default=20,
    show_default=True,
    type=click.IntRange(0, MAX_TAIL),
    help="How many records.",
)
@click.option("--follow", is_flag=True, help="Go on with what is written from now on.")
@json_option
@file_option
def tail(count: int, follow: bool, as_json: bool, file: Path | None) -> None:
    """Show the last records."""
    path = file or audit_file()
    lines, position = read_tail(path, count)
    for line in lines:
        click.echo(_line(line, as_json))
    if follow:
        try:
            for line in follow_lines(path, position, time.sleep):
                click.echo(_line(line, as_json))
        except KeyboardInterrupt:
            return


def _line(untrusted_line: bytes, as_json: bool) -> str:
    try:
        record = parse_record(untrusted_line)
    except RecordError:
        text = escape(untrusted_line.decode("utf-8", "backslashreplace").rstrip("\n"))
        return json.dumps({"broken": text}) if as_json else f"broken record: {text}"
    return record_json(record) if as_json else summary(record)


@audit.command()
@json_option
def replica(as_json: bool) -> None:
    """Say how the audit replica stands: its head, what it keeps, and what is wrong (exit 1)."""
    found = ask(Replica())
    if as_json:
        emit([found])
    else:
        click.echo(f"head     record {found['n']}  {found['hash']}")
        click.echo(f"keeps    from record {found['first']} on")
        click.echo(f"behind   {max(0, found['trail']['n'] - found['n'])} records")
        for first, last in found["gaps"]:
            click.echo(f"gap      records {first} to {last} never came")
        if found["more_gaps"]:
            click.echo(f"gap      and {found['more_gaps']} more")
        if found["left_out"]:
            click.echo(f"full     {found['left_out']} records found no room")
        if found["unfed"]:
            click.echo(f"unfed    {escape(found['unfed'])}")
    _unbroken(found)


def _unbroken(replica: Mapping[str, Any]) -> None:
    """Raise `SkerryError` if the replica says that what it was fed does not follow."""
    if replica["state"] == "broken":
        raise SkerryError(
            f"the audit replica is broken: {escape(replica['reason'])}",
            fix="the trail is not what was replicated: keep the node's files as evidence",
        )


def _vouched(replica: Mapping[str, Any]) -> str:
    """Return the head that the replica vouches for. Raises `SkerryError` if it can't for any."""
    _unbroken(replica)
    if not replica["n"]:
        raise SkerryError(
            "the audit replica has no record yet: no trail can be held against it",
            fix="look at 'skerry audit replica' until it has one",
        )
    for first, last in replica["gaps"]:
        click.echo(f"the replica never had records {first} to {last}", err=True)
    return str(replica["hash"])


@audit.command("verify")
@click.option("--head", metavar="HASH", help="A record's hash, known from elsewhere.")
@click.option("--replica", is_flag=True, help="Hold it against the head that the replica has.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A public key of the trail's checkpoints (the node's own).  [may be repeated]",
)
@json_option
@file_option
def verify_(
    head: str | None, replica: bool, keys: tuple[Path, ...], as_json: bool, file: Path | None
) -> None:
    """Prove the trail, or name the first broken record (exit 1).

    A missing end shows only against a head that was noted elsewhere: the node's own trail is held
    against the head that the node noted, any trail against HEAD, the replica's, and its signed
    checkpoints.
    """
    path = file or audit_file()
    if replica and head is not None:
        raise click.UsageError("--replica is a --head of its own")
    if replica:
        head = _vouched(ask(Replica()))
    if head is not None:
        head = head.lower()
        if not is_hash(head):
            raise click.BadParameter("a hash is 64 hexadecimal digits", param_hint="--head")
    noted = _journal_head(path)  # before the trail is opened, which only grows
    checks = _checks(path, keys)
    first = first_kept(path)
    see = checks.see if checks else None
    try:
        proof = verify(read_lines(path), head, first=first, at_least=noted, see=see)
    except NotFound:
        known = head or (noted.hash if noted else "")
        if not known:
            raise
        raise SkerryError(f"there is no audit trail {path}, but it had the head {known}") from None
    found: dict[str, object] = {"count": proof.count, "head": proof.head, "after": proof.after}
    found["first"] = proof.first
    unsigned = proof.count + proof.first - 1 - (checks.signed if checks else 0)
    if checks:
        found |= {"checkpoints": checks.holding, "unsigned": unsigned}
    if proof.broken:
        if as_json:
            click.echo(json.dumps(found | {"broken": proof.broken, "reason": proof.reason}))
        raise SkerryError(
            f"{path}: record {proof.broken} {escape(proof.reason)}",
            fix=f"the {proof.count} records before it are proven; keep the files as evidence",
        )
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{proof.count} records proven, head {proof.head}")
    if proof.first > 1:
        click.echo(f"from record {proof.first} on; retention removed those before it")
    if proof.after:
        click.echo(f"{proof.after} of them are behind the head that was asked for")
    if checks:
        behind = f"{counted(unsigned, 'record')} behind the last"
        click.echo(f"{counted(checks.holding, 'checkpoint')} verified, {behind}")
    else:
        click.echo("no checkpoint was checked: there is no public key; name one with --key")


def _journal_head(path: Path) -> Link | None:
    """Return the head that the node noted for this trail."""
    return read_head(audit_head()) if path.absolute() == audit_file().absolute() else None


def _checks(path: Path, keys: tuple[Path, ...]) -> Checks | None:
    """Return what checks the checkpoints; None if there is no key to check them with."""
    if not keys and (beside := path.with_suffix(".pub")).exists():
        keys = (beside,)
    return Checks(map(read_public, keys)) if keys else None


@audit.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["avc", "json"]),
    default="avc",
    show_default=True,
    help="Access vectors for SELinux's tools, or every record as it is.",
)
@click.option("--replica", is_flag=True, help="What the audit replica keeps, instead of the trail.")
@click.option(
    "--style",
    type=click.Choice(["user", "xen"]),
    help="avc as audit's USER_AVC records (the default), or as Xen prints them.",
)
@file_option
def export(form: str, replica: bool, style: str | None, file: Path | None) -> None:
    """Write the trail for other tools.

    Lines that are no whole, unaltered record are named, and then the exit code is 1.
    """
    if style and form != "avc":
        raise click.UsageError("--style goes with --format avc")
    if replica and file:
        raise click.UsageError("--replica and --file are two trails")
    path = file or audit_file()
    writer = AvcExport(xen=style == "xen")
    number, broken = 0, 0
    for untrusted_line in _replicated() if replica else read_lines(path):
        number += 1
        try:
            record = open_line(untrusted_line)
            lines = [record_json(record)] if form == "json" else list(writer.lines(record))
        except (BrokenLinkError, RecordError) as error:
            broken += 1
            click.echo(f"broken: line {number} {escape(str(error))}", err=True)
            continue
        if lines:
            click.echo("\n".join(lines))
    _confess(writer)
    if broken:
        source, command = ("the audit replica", "replica") if replica else (path, "verify")
        raise SkerryError(
            f"{source}: {broken} broken records were left out", fix=f"run 'skerry audit {command}'"
        )


def _replicated() -> Iterator[bytes]:
    """Yield the lines that the replica keeps, file by file, untrusted. Raises `SkerryError`.

    A file must begin behind the one before it: so none that lies goes on for ever.
    """
    after, left = 0, MAX_EXPORT
    while untrusted := ask(ReplicaRecords(after)):
        lines = untrusted.splitlines(keepends=True)
        first, left = number_of(lines[0]), left - len(untrusted)
        if first <= after or left < 0:
            raise SkerryError(
                f"what the audit replica gives behind record {after} is no more of it"
            )
        yield from lines
        after = first


def _confess(writer: AvcExport) -> None:
    """Say on standard error what an export does not hold, and whom its numbers mean."""
    for name, number in writer.domains.items():
        click.echo(f"d{number}: {escape(name)}", err=True)
    if writer.without:
        why = "another module's, a limit's, an unknown label's, or hidden by dontaudit"
        click.echo(f"without an access vector: {writer.without} refusals ({why})", err=True)
    if writer.left_out:
        click.echo(f"left out as too long: {writer.left_out} access vectors", err=True)


@click.command()
@click.argument("number", metavar="ID", type=int)
@json_option
@file_option
def why(number: int, as_json: bool, file: Path | None) -> None:
    """Explain the decision that record ID of the audit trail holds."""
    path = file or audit_file()
    try:
        record = open_line(find_line(path, number))
    except BrokenLinkError as error:
        raise SkerryError(
            f"{path}: record {number} {escape(str(error))}", fix="run 'skerry audit verify'"
        ) from None
    if as_json:
        click.echo(record_json(record))
        return
    explanation = _explanation(record)
    if explanation is not None:
        click.echo(explanation.text())
    for line in details(record, without=("why",) if explanation else ()):
        click.echo(line)


def _explanation(record: Record) -> Explanation | None:
    """Return the explanation that a denial's record holds, its texts escaped."""
    raw = record.fields.get("why")
    if not isinstance(raw, dict):
        return None

    def text(table: Mapping[str, Any], key: str) -> str:
        value = table.get(key, "")
        return escape(value) if isinstance(value, str) else ""

    def number(key: str) -> int:
        value = raw.get(key, 0)
        return value if isinstance(value, int) else 0

    def texts(key: str) -> tuple[str, ...]:
        value = raw.get(key)
        return tuple(escape(str(v)) for v in value) if isinstance(value, list) else ()

    answers = raw.get("answers")
    return Explanation(
        allowed=raw.get("allowed") is True,
        code=text(raw, "code"),
        module=text(raw, "module"),
        sentence=text(raw, "sentence"),
        rule=text(raw, "rule"),
        file=text(raw, "file"),
        line=number("line"),
        subject=text(raw, "subject"),
        target=text(raw, "target"),
        tclass=text(raw, "class"),
        permissions=texts("permissions"),
        granted=texts("granted"),
        hook=text(raw, "hook") or text(record.fields, "hook"),
        generation=number("generation"),
        record=record.n,
        answers=tuple(
            Answer(
                text(answer, "module"),
                answer.get("allowed") is True,
                text(answer, "code"),
                text(answer, "reason"),
                Rule(text(answer, "rule")),
            )
            for answer in (answers if isinstance(answers, list) else ())
            if isinstance(answer, dict)
        ),
    )
