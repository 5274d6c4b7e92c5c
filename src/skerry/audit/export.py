r"""The trail in the forms that SELinux's tools read: `USER_AVC` records and Xen's own messages.

The rules: one access vector is one line; nothing that came from outside can end a line, close a
quote or look like another field. Names are quoted, or written in hexadecimal where they hold a
blank, a quote or anything that is not printable ASCII (audit's rule for untrusted strings, with
the single quote added, since that ends the message of a `USER_AVC` record); words that the tools
want bare (contexts, classes, permissions) are written in hexadecimal unless they are plain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from skerry.audit.record import Record, RecordError

MAX_AVC_LINE = 8_900
"""Longest exported line in bytes; audit's tools split longer ones, so those are left out."""

MAX_AVC_NAME = 256
"""Longest name of a domain or port in an exported line, in bytes; the rest of it is cut."""

MAX_DOMIDS = 0x7FF0
"""Most domains that one export for Xen numbers, as many as Xen has; later ones have no number."""

UNSET = 0xFFFF_FFFF
"""How audit writes a user or session that is not known."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BARE = re.compile(r"[A-Za-z0-9_.:,@/+$-]+")
_QUOTABLE = re.compile(rb"[!#-&(-~]*")


class AccessVector(msgspec.Struct, frozen=True):
    """One access vector of a record, as `skerry.xsm.flask.avc` put it there."""

    refused: bool
    permissions: tuple[str, ...]
    scontext: str
    tcontext: str
    tclass: str
    permissive: bool
    subject: str = ""
    target: str = ""


class AvcExport:
    """Writes records as lines of one style; keeps only what it must count and number.

    `without` counts refusals that have no access vector: another module's, a limit's, an unknown
    label's, or hidden by the policy (dontaudit). `left_out` counts access vectors that did not
    fit into their record or into a line. `domains` holds the numbers given, for the style `xen`.
    """

    def __init__(self, xen: bool = False) -> None:
        self.without = 0
        self.left_out = 0
        self.domains: dict[str, int] = {}
        self._xen = xen

    def lines(self, record: Record) -> Iterator[str]:
        """Yield a record's lines. Raises `RecordError` if its access vectors are not such."""
        vectors = _vectors(record)
        if record.event == "deny" and not any(map(_explains_refusal, vectors)):
            self.without += 1
        head = _head(record)
        for vector in vectors:
            if isinstance(vector, int):
                self.left_out += max(0, vector)
                continue
            line = self._as_xen(record, vector) if self._xen else _as_user(record, vector, head)
            if len(line) > MAX_AVC_LINE:
                self.left_out += 1
            else:
                yield line

    def _as_xen(self, record: Record, vector: AccessVector) -> str:
        source, target = (self._domid(record, role) for role in (vector.subject, vector.target))
        if source and target and source != target:
            sides = f"source={source} target={target} "
        elif source:
            sides = f"source={source} "
        else:
            sides = f"target={target} " if target else ""
        return f"(XEN) {_what(vector)} for {sides}{_query(vector)}"

    def _domid(self, record: Record, role: str) -> str:
        """Number a domain by when it first came up; the operator is domain 0."""
        if role == "operator":
            return "d0"
        name = _name(record, role)
        if not name or (name not in self.domains and len(self.domains) >= MAX_DOMIDS):
            return ""
        return f"d{self.domains.setdefault(name, len(self.domains) + 1)}"


def untrusted(text: str) -> str:
    """Write a text from outside as a value: quoted if it may be, else in hexadecimal."""
    data = text.encode("utf-8", "surrogatepass")[:MAX_AVC_NAME]
    return f'"{data.decode()}"' if _QUOTABLE.fullmatch(data) else data.hex().upper()


def _explains_refusal(vector: AccessVector | int) -> bool:
    return isinstance(vector, int) or (vector.refused and not vector.permissive)


def _vectors(record: Record) -> list[AccessVector | int]:
    try:
        return msgspec.convert(record.fields.get("avc", []), list[AccessVector | int])
    except msgspec.MsgspecError as error:
        raise RecordError(f"holds no access vectors: {error}") from None


def _head(record: Record) -> str:
    try:
        moment = datetime.fromisoformat(record.time) - _EPOCH
    except (ValueError, TypeError):  # no time at all, or one without its zone
        raise RecordError("holds no time") from None
    seconds = moment.days * 86_400 + moment.seconds
    if seconds < 0:
        raise RecordError("holds a time before 1970")
    return f"type=USER_AVC msg=audit({seconds}.{moment.microseconds // 1000:03d}:{record.n}):"


def _as_user(record: Record, vector: AccessVector, head: str) -> str:
    hook, port = record.fields.get("hook"), record.fields.get("port")
    about = [f"op={_bare(hook)}"] if isinstance(hook, str) and hook else []
    for key, role in (("source", vector.subject), ("target", vector.target)):
        if name := _name(record, role):
            about.append(f"{key}={untrusted(name)}")
    if isinstance(port, str) and port:
        about.append(f"name={untrusted(port)}")
    permissive = f" permissive={int(vector.permissive)}" if vector.refused else ""
    message = (
        f"{_what(vector)} for  {' '.join([*about, _query(vector)])}{permissive}"
        f' exe="skerry" sauid={UNSET} hostname=? addr=? terminal=?'
    )
    return f"{head} pid=0 uid={UNSET} auid={UNSET} ses={UNSET} subj=? msg='{message}'"


def _what(vector: AccessVector) -> str:
    word = "denied" if vector.refused else "granted"
    return f"avc:  {word}  {{ {' '.join(map(_bare, vector.permissions))} }}"


def _query(vector: AccessVector) -> str:
    sides = f"scontext={_bare(vector.scontext)} tcontext={_bare(vector.tcontext)}"
    return f"{sides} tclass={_bare(vector.tclass)}"


def _bare(text: str) -> str:
    if _BARE.fullmatch(text):
        return text
    return text.encode("utf-8", "surrogatepass").hex().upper() or "?"


def _name(record: Record, role: str) -> str:
    """Return the domain that a role of a hook stands for; an event channel is its owner's."""
    owner = role.partition("->")[0]
    name = record.fields.get("domain" if owner == "new" else owner)
    return name if isinstance(name, str) and owner in {"domain", "new", "source", "sink"} else ""
