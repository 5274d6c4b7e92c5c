"""`skerry flow prove` and `verify`: claims, their certificates, and the check of these."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from skerry.cli.common import counted, json_option
from skerry.cli.flow_ask import path_line, show_path
from skerry.cli.flow_options import Source, graph_options, read_given
from skerry.errors import InputError, Problem, SkerryError
from skerry.wire.escape import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skerry.flow.claim import Claim
    from skerry.flow.graph import Graph
    from skerry.flow.proof import Proof

MAX_CERTIFICATE_BYTES = 64 << 20
"""Longest certificate that is written or checked, in bytes; a longer one is refused."""

MAX_CERTIFICATE_PARTS = 4_000_000
"""Most names and other parts of a certificate, each of which takes some 100 bytes while it is
checked; one with more is neither written nor checked."""

REFUTED = 1
"""Exit code where a claim does not hold."""


@click.command()
@graph_options
@click.option("--claims", metavar="FILE", help="Claims, one a line; # begins a comment.")
@click.option("--certificate", metavar="FILE", help="Write a certificate of what is proven.")
@click.option("--history", is_flag=True, help="Count walls with history along whole paths.")
@json_option
@click.argument("words", nargs=-1, metavar="['A -/-> B except G,H']...")
def prove(
    source: Source,
    claims: str | None,
    certificate: str | None,
    history: bool,
    as_json: bool,
    words: tuple[str, ...],
) -> None:
    """Prove that nothing flows from A to B but through G or H, or show the path (exit 1).

    A, B and G are labels, several set apart by commas. Of a system without a claim, its own
    assertions are proven. Of what holds only by walls with history there is no certificate, and it
    is said of a system that begins clean: what was exchanged under an earlier policy, in which a
    wall had no history, is not counted.
    """
    from skerry.flow.proof import certificate as written
    from skerry.flow.proof import prove as proven

    graph = source.graph()
    asked = _claims(source, claims, words)
    problems: list[Problem] = []
    proofs: list[Proof] = []
    for claim in asked:
        try:
            proofs.append(proven(graph, claim, history=history))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    for proof in proofs:
        _show(graph, proof, as_json)
    certified = [proof for proof in proofs if proof.closed]
    if certificate:
        _write(certificate, written(graph.about, certified) if certified else b"")
    if certificate and len(certified) < len(proofs):
        without = counted(len(proofs) - len(certified), "claim")
        click.echo(f"{certificate}: without {without}, refuted or held by history", err=True)
    if not all(proof.holds for proof in proofs):
        sys.exit(REFUTED)


def _write(file: str, content: bytes) -> None:
    """Leave a certificate, or with nothing certified none, in the place of an older one."""
    path = Path(file)
    if content:
        _require_bounds(file, content)
        path.write_bytes(content)
    elif path.is_file():
        path.unlink()


def _require_bounds(file: str, content: bytes) -> None:
    """Raise `InputError` for a certificate that would take too much memory to check."""
    # Each part of a document in JSON but the first follows one of these.
    parts = sum(map(content.count, (b",", b"[", b"{", b":")))
    if len(content) > MAX_CERTIFICATE_BYTES or parts > MAX_CERTIFICATE_PARTS:
        limits = f"{MAX_CERTIFICATE_BYTES} bytes or {MAX_CERTIFICATE_PARTS} parts"
        message = f"a certificate of more than {limits}; prove fewer claims at once"
        raise InputError([Problem(file, 0, message)])


def _claims(source: Source, file: str | None, words: Sequence[str]) -> list[Claim]:
    from skerry.flow.claim import MAX_CLAIMS_BYTES, parse_claim, parse_claims

    found = [parse_claim(word) for word in words]
    if file:
        content = read_given(file, MAX_CLAIMS_BYTES)
        try:
            found += parse_claims(content.decode("utf-8"), file)
        except UnicodeDecodeError:
            raise InputError([Problem(file, 0, "cannot be read: not in UTF-8")]) from None
    if not found and source.system:
        from skerry.node.assertions import claims_of

        found = claims_of(source.setup())
        if not found:
            raise click.UsageError("the system has no assertion; give a claim: 'A -/-> B'")
    if not found:
        raise click.UsageError("give a claim, 'A -/-> B' or 'A -/-> B except G', or --claims FILE")
    return found


def _show(graph: Graph, proof: Proof, as_json: bool) -> None:
    if as_json:
        shown: dict[str, Any] = {"claim": str(proof.claim), "holds": proof.holds}
        if proof.holds:
            shown["closed"] = len(proof.closed)
            shown["by_history"] = proof.by_history
        else:
            pairs = zip(proof.path, proof.path[1:], strict=False)
            shown["path"] = list(proof.path)
            shown["steps"] = [
                {"from": one, "to": two, "rules": graph.reasons(one, two)} for one, two in pairs
            ]
        click.echo(json.dumps(shown))
    elif proof.by_history:
        how = "walls with history close every path from a clean beginning"
        click.echo(f"proven: {escape(str(proof.claim))} ({how})")
    elif proof.holds:
        reached = counted(len(proof.closed) - len(proof.sources), "other label")
        click.echo(f"proven: {escape(str(proof.claim))} ({reached} reached)")
    else:
        click.echo(f"refuted: {escape(str(proof.claim))}")
        show_path(graph, proof.path, as_json=False)
        words = f"{proof.claim} does not hold: {path_line(proof.path)}"
        click.echo(f"error: {escape(words)}", err=True)


@click.command()
@graph_options
@json_option
@click.argument("certificate")
def verify(source: Source, as_json: bool, certificate: str) -> None:
    """Check a certificate against a policy's rules, or a system's decisions, without searching.

    What the certificate was made for (policies by digest, weight, map, what is left out) is taken
    from the options here and must be the same.
    """
    from skerry.flow.verify import Unproven, check

    found = _read(certificate)
    graph = source.graph()
    about, names, flows, left_out = _evidence(source, graph)
    made_for = found.get("about") if isinstance(found, dict) else None
    claimed = made_for if isinstance(made_for, dict) else {}
    differing = [
        f"{key} is {_shown(claimed.get(key))} there and {_shown(value)} here"
        for key, value in about.items()
        if claimed.get(key) != value
    ]
    if differing:
        message = f"{certificate}: it was made for something else: {'; '.join(differing)}"
        raise SkerryError(escape(message), fix="name the policy and options that it was made with")
    try:
        count = check(found, names, flows, left_out)
        for proof in found["proofs"]:
            _require_meant(graph, proof)
    except Unproven as error:
        message = escape(f"{certificate}: not proven: {error}")
        raise SkerryError(message, fix="prove the claims anew: skerry flow prove") from None
    claims = [str(proof["claim"]) for proof in found["proofs"]]
    if as_json:
        shown = {"verified": count, "claims": claims, "labels": len(names), "flows": len(flows)}
        click.echo(json.dumps(shown))
        return
    for claim in claims:
        click.echo(f"verified: {escape(claim)}")
    rules = counted(len(flows), "flow")
    click.echo(f"{counted(count, 'claim')} verified against {rules} between {len(names)} labels")


def _require_meant(graph: Graph, proof: dict[str, Any]) -> None:
    """Raise `Unproven` if a proof's sides are not what its text claims, which people read."""
    from skerry.flow.claim import parse_claim, resolve
    from skerry.flow.verify import Unproven, statement

    try:
        sides = resolve(parse_claim(str(proof.get("claim"))), graph)
    except InputError as error:
        raise Unproven(f"its text is no claim here: {error}") from None
    meant = {"from": sides.sources, "to": sides.sinks, "except": sides.trusted}
    if any(set(proof[side]) != set(graph.named(bits)) for side, bits in meant.items()):
        text, what = str(proof["claim"])[:300], statement(proof)[:300]
        raise Unproven(f"{text!r} is claimed, but something else proven: {what}")


def _evidence(
    source: Source, graph: Graph
) -> tuple[dict[str, Any], list[str], list[tuple[int, int]], tuple[str, ...]]:
    """Return what a certificate must be about, and the flows, none of them from a graph."""
    about = json.loads(msgspec.json.encode(graph.about))
    left_out = graph.named(graph.gone)
    if source.system is None:
        from skerry.flow.evidence import policy_evidence

        names, flows = policy_evidence(source.stack(), source.options())
        return about, names, flows, left_out
    asked = source.system_flows(plainly=True)
    return about, asked.names, asked.evidence(source.configured), left_out


def _read(file: str) -> Any:
    content = read_given(file, MAX_CERTIFICATE_BYTES)
    _require_bounds(file, content)
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise InputError([Problem(file, 0, "not a certificate: no JSON")]) from None


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 100 else text[:97] + "..."
