"""The checker of certificates. It shares no code with the search that makes them.

The rule this module keeps: a certificate is accepted only if each of its claims follows from the
flows that are handed in. A flow is a pair of sets, as numbers of labels in bits: every member of
the first may send to every member of the second. So a rule over attributes is checked as it is.

As a program, `python3 verify.py CERTIFICATE FLOWS` needs nothing but this file: FLOWS is what
`skerry flow graph --json` wrote. `skerry flow verify` hands in the rules of the policy itself.
"""

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

FORMAT = "skerry-flow-proof-1"


class Unproven(Exception):
    """A certificate that proves nothing; the text says which claim fails, and why."""


def check(
    certificate: Any,
    names: Sequence[str],
    flows: Collection[tuple[int, int]],
    left_out: Iterable[str] = (),
) -> int:
    """Check every claim of a certificate and return how many there are. Raises `Unproven`.

    `left_out` are labels that a graph was made without: whatever passes through them is trusted.
    """
    if not isinstance(certificate, dict) or certificate.get("format") != FORMAT:
        raise Unproven(f"not a certificate of the form {FORMAT}")
    proofs = certificate.get("proofs")
    if not isinstance(proofs, list) or not proofs:
        raise Unproven("a certificate without a proof")
    number = {name: place for place, name in enumerate(names)}
    gone = _bits(list(left_out), number, "what is left out")
    for proof in proofs:
        if not isinstance(proof, dict):
            raise Unproven("a proof that is no object")
        claim = repr(proof.get("claim"))[:300]
        sources, sinks, trusted, closed = (
            _bits(proof.get(side), number, claim) for side in ("from", "to", "except", "closed")
        )
        trusted |= gone
        if not sources or not sinks:
            raise Unproven(f"{claim}: a side is empty")
        if sources & sinks or (sources | sinks) & trusted:
            raise Unproven(f"{claim}: a label stands on two sides, or is left out")
        if sources & ~closed or closed & (sinks | trusted):
            raise Unproven(f"{claim}: the closed set lacks a source, or holds what it must not")
        outside = ~(closed | trusted)
        for senders, receivers in flows:
            if senders & closed and receivers & outside:
                one, two = names[_first(senders & closed)], names[_first(receivers & outside)]
                raise Unproven(f"{claim}: {one} may send to {two}, out of the closed set")
    return len(proofs)


def _bits(value: Any, number: dict[str, int], claim: str) -> int:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise Unproven(f"{claim}: a side is no list of labels")
    room = bytearray(len(number) // 8 + 1)
    for name in value:
        if name not in number:
            raise Unproven(f"{claim}: there is no label {name!r}")
        room[number[name] >> 3] |= 1 << (number[name] & 7)
    return int.from_bytes(room, "little")


def _first(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def main(certificate: str, graph: str) -> str:
    """Check a certificate file against a file of flows, and return what it proves."""
    proof, flows = (json.loads(Path(file).read_bytes()) for file in (certificate, graph))
    number = {name: place for place, name in enumerate(flows["labels"])}
    pairs = [(1 << number[s], _bits(sinks, number, s)) for s, sinks in flows["flows"].items()]
    check(proof, flows["labels"], pairs, flows["excluded"])
    return "\n".join(f"verified: {statement(each)}" for each in proof["proofs"])


def statement(proof: dict[str, Any]) -> str:
    """Return what a proof proves: the sides that were checked, whatever its text says."""
    sides = [",".join(proof[side]) for side in ("from", "to", "except")]
    return f"{sides[0]} -/-> {sides[1]}" + (f" except {sides[2]}" if sides[2] else "")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python3 verify.py CERTIFICATE FLOWS")
    try:
        sys.stdout.write(main(*sys.argv[1:]) + "\n")
    except Exception as error:  # whatever fails, nothing is verified
        sys.exit(f"not verified: {type(error).__name__}: {error}")
