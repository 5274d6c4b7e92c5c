"""What a node keeps of one TPM: whose it is, its key, its attestation key, and its state.

The rules: what is claimed is on the disk before the TPM can be used; a TPM that was made is never
made again, whatever is missing or damaged of it; the key lies apart from the state, which only the
jail of its swtpm and the node can reach, and which was encrypted before it was written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from skerry.device.tpm.give import give
from skerry.errors import Denied
from skerry.jail.identity import Identity
from skerry.system.durable import sync

MAX_STATE = 1 << 20
"""Longest state of a TPM in bytes; a longer one is refused as damaged. It takes some 2 KiB."""

MAX_RECORD = 8192
"""Longest record of a TPM in bytes; a longer one is refused as damaged."""

KEY_BYTES = 32
STATE_FILE = "tpm2-00.permall"
"""What swtpm calls the state of a TPM 2.0."""

LOCK_FILE = ".lock"
"""What swtpm holds a lock on while it runs."""

LOCK_S = 2.0
"""How long a swtpm that was killed may take to be gone, in seconds. It takes milliseconds."""

BROKEN = "TPM-STATE"
"""The code of a refusal for what is missing or damaged of a TPM."""

_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One TPM: the domain that it belongs to, and its attestation key's point in hexadecimal.

    `point` is empty until the TPM was made.
    """

    owner: str
    point: str = ""


class Kept:
    """The files of the TPM `name`: its record in `records`, its key in `keys`, its state in
    `states`, whose folders are there: the first two the node's alone, the last for jails to reach.
    """

    def __init__(self, name: str, records: Path, keys: Path, states: Path) -> None:
        self.name = name
        self.folder = states / name
        self._record = records / name
        self._key = keys / f"tpm-{name}"

    def read(self) -> Record | None:
        """Return the record, None where there never was such a TPM. Raises `Denied`."""
        try:
            digest, _, body = _read(self._record, MAX_RECORD).partition(b"\n")
            if digest.decode("latin-1") != hashlib.sha256(body).hexdigest():
                raise ValueError("its digest does not match")
            return msgspec.json.decode(body, type=Record)
        except FileNotFoundError:
            if self._key.exists() or (self.folder / STATE_FILE).exists():
                raise self._broken(f"its record {self._record} is missing") from None
            return None
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            words = getattr(error, "strerror", None) or error
            raise self._broken(f"its record {self._record} cannot be read: {words}") from None

    def claim(self, owner: str) -> Record:
        """Return the record, made for this owner if there is none. Raises `Denied`.

        On return it is on the disk, and so is the key.
        """
        record = self.read()
        if record is not None:
            return record
        with self._durable():
            # The record comes first: a key without one could be of a TPM whose record was lost.
            _write(self._record, _encoded(Record(owner)))
        return Record(owner)

    def made(self, record: Record, point: bytes) -> Record:
        """Write down that the TPM was made, with its attestation key. Raises `Denied`."""
        done = msgspec.structs.replace(record, point=point.hex())
        with self._durable():
            for path in (self.folder / STATE_FILE, self.folder):
                sync(path, os.O_NOFOLLOW)
            _write(self._record, _encoded(done))
        return done

    def key(self, record: Record) -> bytes:
        """Return the key in hexadecimal; before the TPM was made a new one. Raises `Denied`."""
        if not record.point:
            with self._durable():
                _write(self._key, secrets.token_hex(KEY_BYTES).encode())
        try:
            key = _read(self._key, 2 * KEY_BYTES)
            if len(bytes.fromhex(key.decode("ascii"))) != KEY_BYTES:
                raise ValueError
        except OSError as error:
            raise self._broken(f"its key {self._key}: {error.strerror}") from None
        except ValueError:
            raise self._broken(f"its key {self._key} is damaged") from None
        return key

    def give(self, record: Record, identity: Identity) -> None:
        """Let the jail with this identity, and no other, use the state. Raises `Denied`.

        Before the TPM was made there must be none, and what an interrupted making left goes. A
        swtpm that was killed is waited for, so that it changes nothing any more.
        """
        state = self.folder / STATE_FILE
        with self._durable():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            if not _is_free(self.folder / LOCK_FILE):
                raise Denied(
                    f"the TPM {self.name} is used by another process still",
                    fix="wait until that has ended; no two nodes can have one TPM",
                    code="TPM-IN-USE",
                )
            content = None
            if record.point:
                try:
                    content = _read(state, MAX_STATE)
                except FileNotFoundError:
                    raise self._broken(f"its state {state} is missing") from None
                except ValueError as error:
                    raise self._broken(f"its state {state}: {error}") from None
            for left in os.scandir(self.folder):
                if left.name != STATE_FILE or content is None:
                    Path(left.path).unlink()
            if content is not None:
                # A file of ours in the place of one that an earlier jail's uid owns.
                _write(state, content, identity)
            _open_to(self.folder, identity)

    @contextlib.contextmanager
    def _durable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Denied(
                f"the TPM {self.name} cannot be kept: {error.strerror}",
                fix="make room on the disk, or mend it",
                code="NOT-DURABLE",
            ) from None

    def _broken(self, what: str) -> Denied:
        return Denied(
            f"the TPM {self.name} cannot be used: {what}",
            fix="restore its files from a copy, or give the domain another TPM",
            code=BROKEN,
        )


def _is_free(lock: Path) -> bool:
    """Wait until no swtpm holds the lock; say whether it came to that in `LOCK_S`."""
    end = time.monotonic() + LOCK_S
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    try:
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > end:
                    return False
                time.sleep(0.01)
    finally:
        os.close(fd)


def _encoded(record: Record) -> bytes:
    body = msgspec.json.encode(record)
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _read(path: Path, most: int) -> bytes:
    """Return a regular file's bytes. Raises `OSError`, `ValueError` if it is longer or another."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        untrusted = file.read(most + 1)
    if len(untrusted) > most:
        raise ValueError(f"it is longer than {most} bytes")
    return untrusted


def _write(path: Path, content: bytes, identity: Identity | None = None) -> None:
    """Replace a file by way of a new one, both durable; it is the identity's to use."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if identity is not None:
        _open_to(new, identity)
    new.replace(path)
    sync(path.parent, os.O_NOFOLLOW)


def _open_to(path: Path, identity: Identity) -> None:
    """Let one uid use a file or folder of ours, and what it makes in the folder be ours to read."""
    if identity.uid == os.getuid():
        return
    if not identity.mapped:
        os.chown(path, identity.uid, identity.gid)
    elif path.is_dir():
        os.setxattr(path, _ACCESS, _acl(7, identity.uid))
        os.setxattr(path, _DEFAULT, _acl(6, os.getuid()))
    else:
        give(path, identity.uid, identity.gid)


def _acl(may: int, uid: int) -> bytes:
    """Return the access list, as the kernel takes it, that lets the owner and one uid do `may`."""
    anybody = 0xFFFFFFFF
    entries = [
        (1, may, anybody),
        (2, may, uid),
        (4, 0, anybody),
        (16, may, anybody),
        (32, 0, anybody),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
