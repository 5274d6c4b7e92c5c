"""What the first record of a node says of the code it runs."""

from __future__ import annotations

import hashlib
from pathlib import Path


def code_digest() -> str:
    """Return hex SHA-256 over the names and bytes of this package's source files, in order."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
