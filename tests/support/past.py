"""A small system with a disk that one label writes, and files in which that label is no more."""

from __future__ import annotations

from pathlib import Path

POLICY = """\
[policy]
name = "tests.past"
version = "1.0"
bootstrap = "system"
[simple-type-enforcement]
types = ["mine", "other", "shelf"]
[labels.system]
ste = ["mine", "other", "shelf"]
[labels.p]
ste = ["mine", "shelf"]
[labels.n]
ste = ["shelf"]
[labels.m]
ste = ["mine"]
[labels.z]
ste = ["other"]
[resources.shelf]
ste = "shelf"
"""
"""`m` may send to `p`, and `p` to the shelf, which `n` reads; `z` meets nobody but the system."""

HEAD = 'name = "past"\npolicy = "policy.toml"\n'
DISK = '[resources.d]\nkind = "disk"\nlabel = "shelf"\nfile = "d.img"\n'
READER = '[domains.n]\nlabel = "n"\nmachine = "simulator"\nuses = ["d:ro"]\n'
WRITER = '[domains.p]\nlabel = "p"\nmachine = "simulator"\nuses = ["d"]\n'
MATE = '[domains.m]\nlabel = "m"\nmachine = "simulator"\n'
OTHER = '[domains.p]\nlabel = "z"\nmachine = "simulator"\n'

BEFORE = HEAD + WRITER + DISK
"""`p` writes the disk, and nobody reads it."""

GONE = HEAD + READER + DISK + '[[assert]]\nnever = "label:p -> n"\n'
"""No domain has the label `p`."""

RELABELLED = HEAD + OTHER + READER + DISK + '[[assert]]\nnever = "p -> n"\n'
"""The domain `p` has another label than the one that it is called like."""

PAST = "history: the label p wrote d before, until `skerry disk release d`"
"""What is said of the step that only the history of the disk makes."""


def write(folder: Path, system: str, policy: str = POLICY, name: str = "system.toml") -> Path:
    """Write a system's files, and return the path of the system's."""
    (folder / "policy.toml").write_text(policy)
    path = folder / name
    path.write_text(system)
    return path
