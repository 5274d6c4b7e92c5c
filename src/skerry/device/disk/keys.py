"""The keys of encrypted disks: one each, random, the node's alone.

The rules: a key is on disk before anything is encrypted with it; to destroy it is to release the
disk, because nothing else opens it; one that is damaged is an error, never replaced.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

from skerry.errors import Denied
from skerry.system.durable import sync

_KEY = re.compile(r"[0-9a-f]{64}")


class KeyLost(Denied):
    """A disk's key is not there or damaged."""

    code = "DISK-KEY"


def one_time() -> str:
    """Return a key that is kept nowhere: 256 bits as 64 digits."""
    return secrets.token_hex(32)


class Keys:
    """The keys of one node's disks, in a directory that only its owner may enter."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, path: str, name: str = "") -> Path:
        """Return the file of an image's key, whatever the disk was called when it was made."""
        digest = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:32]
        return next(self._folder.glob(f"*-{digest}"), self._folder / f"{name}-{digest}")

    def read(self, path: str) -> str:
        """Return the key of an image, empty if it has none.

        Raises `KeyLost` for one that is damaged.
        """
        file = self._file(path)
        try:
            untrusted = file.read_bytes()[:128].decode("latin-1")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise KeyLost(f"{file} cannot be read: {error.strerror}") from None
        if not _KEY.fullmatch(untrusted):
            raise KeyLost(f"{file} is damaged", fix="restore it from a backup")
        return untrusted

    def make(self, path: str, name: str) -> str:
        """Return the key of an image, made and on disk if it had none; `name` is for people.

        Raises `KeyLost`.
        """
        if kept := self.read(path):
            return kept
        file, key = self._file(path, name), one_time()
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            new = file.with_name(f"{file.name}.new")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with os.fdopen(os.open(new, flags, 0o600), "w") as opened:
                opened.write(key)
                opened.flush()
                os.fsync(opened.fileno())
            new.rename(file)
            sync(self._folder, os.O_DIRECTORY)
        except OSError as error:
            raise KeyLost(f"{file} cannot be written: {error.strerror}") from None
        return key

    def destroy(self, path: str) -> bool:
        """Overwrite a key and remove it, both on disk on return; say whether there was one.

        Raises `KeyLost`.
        """
        file = self._file(path)
        try:
            with file.open("r+b") as opened:
                opened.write(b"0" * 64)
                opened.flush()
                os.fsync(opened.fileno())
            file.unlink()
            sync(self._folder, os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise KeyLost(f"{file} cannot be destroyed: {error.strerror}") from None
        return True
