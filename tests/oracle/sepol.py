"""Debian's libsepol, called through ctypes, as the oracle of decisions.

libsepol keeps one policy in static memory, so there is one oracle a process. It searches contexts
linearly: a run keeps to some thousand of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path

from skerry.errors import PolicyError
from skerry.image import package
from skerry.policy.policydb.cursor import Cursor
from skerry.policy.policydb.read import read_policydb
from skerry.policy.policydb.symbols import read_range
from tests.support import debian

LIBRARY = "libsepol.so.2"

LAST_XEN_SID = 13

TE, CONSTRAINT, RBAC, BOUNDS = 1, 2, 4, 8


class AvDecision(ctypes.Structure):
    """`struct sepol_av_decision`."""

    _fields_ = [  # the form that ctypes wants
        ("allowed", ctypes.c_uint32),
        ("decided", ctypes.c_uint32),
        ("auditallow", ctypes.c_uint32),
        ("auditdeny", ctypes.c_uint32),
        ("seqno", ctypes.c_uint32),
    ]


class Sepol:
    """The oracle with one policy loaded."""

    def __init__(self, policy: Path, library: str = LIBRARY) -> None:
        """Load a policy; `library` may be the whole of libsepol, see `whole_library`."""
        self._lib = ctypes.CDLL(library)
        self._libc = ctypes.CDLL(None)
        self._libc.fmemopen.restype = ctypes.c_void_p
        self._libc.fmemopen.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p]
        self._libc.fclose.argtypes = [ctypes.c_void_p]
        self._libc.free.argtypes = [ctypes.c_void_p]
        self._lib.sepol_set_policydb_from_file.argtypes = [ctypes.c_void_p]
        self._lib.sepol_debug(0)
        self.sids: dict[str, int] = {}
        self._classes: dict[str, int] = {}
        self._load(policy)

    def _load(self, policy: Path) -> None:
        data = palatable(policy)
        file = self._libc.fmemopen(data, ctypes.c_size_t(len(data)), b"rb")
        assert file, policy
        try:
            assert self._lib.sepol_set_policydb_from_file(file) == 0, policy
        finally:
            self._libc.fclose(file)

    def sid(self, context: str) -> int | None:
        """Return the SID of a context, None if the policy does not allow it."""
        known = self.sids.get(context)
        if known is not None:
            return known
        text = context.encode()
        sid = ctypes.c_uint32()
        # The length counts the final zero: that is how libsepol's own callers count it.
        if self._lib.sepol_context_to_sid(text, ctypes.c_size_t(len(text) + 1), ctypes.byref(sid)):
            return None
        self.sids[context] = sid.value
        return sid.value

    def valid(self, context: str) -> bool:
        """Tell whether a text is a context of the policy; keeps nothing."""
        return int(self._lib.sepol_check_context(context.encode())) == 0

    def text(self, sid: int) -> str:
        """Return the context of a SID, to be shown.

        Not to be compared: libsepol 3.4 writes `c25.c127,c165` for `c25.c63,c165`, since a run
        of categories that ends where a word of its bitmap ends is taken up to the next word.
        """
        text, length = ctypes.c_char_p(), ctypes.c_size_t()
        status = self._lib.sepol_sid_to_context(sid, ctypes.byref(text), ctypes.byref(length))
        assert status == 0
        value = text.value
        assert value is not None
        return value.decode()

    def tclass(self, name: str) -> int:
        """Return the number of a class."""
        known = self._classes.get(name)
        if known is None:
            number = ctypes.c_uint16()
            assert not self._lib.sepol_string_to_security_class(name.encode(), ctypes.byref(number))
            known = self._classes[name] = number.value
        return known

    def decide(
        self, source: str, target: str, tclass: str, requested: int = 0xFFFFFFFF
    ) -> tuple[int, int, int, int]:
        """Return allowed, auditallow, dontaudit and the reasons of a refusal."""
        one, two = self.sid(source), self.sid(target)
        assert one is not None and two is not None
        decision, reason = AvDecision(), ctypes.c_uint()
        status = self._lib.sepol_compute_av_reason(
            one,
            two,
            ctypes.c_uint16(self.tclass(tclass)),
            ctypes.c_uint32(requested),
            ctypes.byref(decision),
            ctypes.byref(reason),
        )
        assert status == 0, (source, target, tclass)
        dontaudit = decision.auditdeny ^ 0xFFFFFFFF
        return decision.allowed, decision.auditallow, dontaudit, reason.value

    def new_context(self, kind: str, source: str, target: str, tclass: str) -> int | None:
        """Return the SID of a new object's context, None if there is none.

        `member` and `change`; `transition` only from the whole library, since the shared one
        keeps that call to itself.
        """
        one, two = self.sid(source), self.sid(target)
        assert one is not None and two is not None
        sid = ctypes.c_uint32()
        call = getattr(self._lib, f"sepol_{kind}_sid")
        if call(one, two, ctypes.c_uint16(self.tclass(tclass)), ctypes.byref(sid)):
            return None
        return sid.value

    def valid_transition(self, contexts: Sequence[str], tclass: str) -> bool:
        """Tell whether validatetrans lets a thing go from old to new, for a task."""
        sids = [self.sid(context) for context in contexts]
        buffer = ctypes.c_char_p()
        status = self._lib.sepol_validate_transition_reason_buffer(
            *sids, ctypes.c_uint16(self.tclass(tclass)), ctypes.byref(buffer), 0
        )
        self._libc.free(buffer)
        return int(status) == 0


def whole_library() -> str:
    """Return libsepol with its hidden calls too, linked by gcc from Debian's static library."""

    def make(work: Path) -> None:
        archive = next(root.glob("usr/lib/*/libsepol.a"))
        shared = ["gcc", "-shared", "-o", str(work / "whole.so"), "-Wl,-Bsymbolic"]
        whole = ["-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive"]
        package.run([*shared, *whole], package="gcc libc6-dev")

    root = debian.unpacked("libsepol-dev")
    return str(debian.cached("libsepol", "whole", make) / "whole.so")


def palatable(policy: Path) -> bytes:
    """Return a policy's bytes as every libsepol takes them.

    Since 3.6 libsepol refuses Xen's thirteenth initial SID, since its list of their names lacks
    `xenboot`; so Debian 13's can't load Xen's own policy. That entry is cut out: no decision and
    no label depends on it.
    """
    data = policy.read_bytes()
    if b"XenFlask" not in data[:16]:
        return data
    model = read_policydb(data, policy.name)
    entries = [
        (entry.key[0], context.user, context.role, context.type)
        for entry in model.object_contexts
        for context in entry.contexts
        if entry.kind == "sid"
    ]
    table = -1
    while True:  # until what follows are the entries, each a SID, a context and its range
        table = data.index(struct.pack("<I", len(entries)), table + 1)
        cursor = Cursor(data, policy.name)
        cursor.offset = table + 4
        places = [_skip(cursor, entry) for entry in entries]
        if all(places):
            break
    cut = dict(zip((entry[0] for entry in entries), places, strict=True)).get(LAST_XEN_SID)
    if not cut:
        return data
    start, end = cut
    return data[:table] + struct.pack("<I", len(entries) - 1) + data[table + 4 : start] + data[end:]


def _skip(cursor: Cursor, entry: tuple[int | str, ...]) -> tuple[int, int] | None:
    """Go past an entry of the table of initial SIDs; None if another thing stands here."""
    start = cursor.offset
    with contextlib.suppress(PolicyError):
        if cursor.u32s(4) == entry:
            read_range(cursor)
            return start, cursor.offset
    return None


def with_booleans(policy: Path, booleans: dict[str, bool], to: Path) -> Path:
    """Write a copy of a policy in which these booleans are set, by libsepol itself."""
    lib, libc = ctypes.CDLL(LIBRARY), ctypes.CDLL(None)
    data = palatable(policy)
    handle, db = ctypes.c_void_p(), ctypes.c_void_p()
    lib.sepol_handle_create.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(lib.sepol_handle_create())
    lib.sepol_msg_set_callback(handle, None, None)
    assert lib.sepol_policydb_create(ctypes.byref(db)) == 0
    assert lib.sepol_policydb_from_image(handle, data, ctypes.c_size_t(len(data)), db) == 0
    for name, state in booleans.items():
        key, value = ctypes.c_void_p(), ctypes.c_void_p()
        assert lib.sepol_bool_key_create(handle, name.encode(), ctypes.byref(key)) == 0
        assert lib.sepol_bool_create(handle, ctypes.byref(value)) == 0
        assert lib.sepol_bool_set_name(handle, value, name.encode()) == 0
        lib.sepol_bool_set_value(value, int(state))
        assert lib.sepol_bool_set(handle, db, key, value) == 0
        lib.sepol_bool_free(value)
        lib.sepol_bool_key_free(key)
    image, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert lib.sepol_policydb_to_image(handle, db, ctypes.byref(image), ctypes.byref(size)) == 0
    to.write_bytes(ctypes.string_at(image, size.value))
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free(image)
    lib.sepol_policydb_free(db)
    lib.sepol_handle_destroy(handle)
    return to
