"""Which labels have written each resource that lives on, kept on the disk.

The rules this module keeps (law 6): what may be written by a label is written down before it can
be; the record only grows, until the resource is released; a damaged record is an error, never an
empty one, because forgetting would open a wall. What it is about is the thing itself (a disk's
image), whatever a system file calls it. A label is kept with the policy modules whose name for it
that is, so that under another policy it is found under the name that it has there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from skerry.errors import Denied, InputError, PolicyError
from skerry.label import Label
from skerry.node import paths
from skerry.node.setup import Setup
from skerry.policy.history import FileHistory
from skerry.system.model import ResourceSpec
from skerry.xsm.stack import History, Stack


def lives_on(spec: ResourceSpec) -> str:
    """Return what it is that outlives a use, whatever the file calls it; empty if nothing does."""
    if spec.kind == "disk":
        return f"disk:{os.path.realpath(spec.file)}"
    return f"tpm:{spec.name}" if spec.kind == "tpm" else ""


class Written:
    """The record in one file. Raises `PolicyError` if it is damaged, when it is made."""

    def __init__(self, path: Path) -> None:
        self._store = FileHistory(path, "who has written what")
        self._kept: History = self._store.load()
        self._saving = asyncio.Lock()

    def of(self, what: str, stack: Stack) -> frozenset[Label]:
        """Return the labels that have written a thing, as a policy calls them.

        One that it has no name for is as it was, and refused wherever it is asked about.
        """
        found = self._kept.get(what, {}).items()
        return frozenset(_carried(_decode(text), digests, stack) for text, digests in found)

    async def keep(self, what: str, labels: Iterable[Label], stack: Stack) -> None:
        """Return once a thing's writers are these, durably; nothing is done if they are already.

        The labels are those of the policy `stack`. Raises `PolicyError` (a `Denied`) or `OSError`;
        then the record is as it was.
        """
        wanted = {
            msgspec.json.encode(label.parts).decode(): _knowing(label, stack) for label in labels
        }
        # A save goes on when its waiter is cancelled, or an older one could land on a newer.
        await asyncio.shield(asyncio.ensure_future(self._keep(what, wanted)))

    async def _keep(self, what: str, wanted: Mapping[str, frozenset[str]]) -> None:
        async with self._saving:
            if self._kept.get(what, {}) == wanted:
                return
            kept = {**self._kept, what: wanted}
            if not wanted:
                del kept[what]
            await self._store.save(kept)
            self._kept = kept


def writers(setup: Setup, written: Written) -> dict[str, frozenset[Label]]:
    """Return who has written each resource of a setup, as its policy calls them."""
    kept = {name: lives_on(spec) for name, spec in setup.system.resources.items()}
    found = {name: written.of(what, setup.stack) for name, what in kept.items() if what}
    return {name: labels for name, labels in found.items() if labels}


def with_writers(setup: Setup) -> Setup:
    """Return a setup with what the state directory knows of who has written its resources.

    No directory, or none of its own, knows of nobody. Raises `InputError` if the record is damaged
    or can't be read: what it holds must not be left out of a proof.
    """
    if not any(map(lives_on, setup.system.resources.values())):
        return setup
    try:
        written = Written(paths.written_file())
    except PolicyError as error:
        raise InputError(error.problems) from None
    return msgspec.structs.replace(setup, written=writers(setup, written))


def _knowing(label: Label, stack: Stack) -> frozenset[str]:
    """Return the digests of the modules that have a domain's label of that name."""
    found = set()
    for module in stack.modules:
        with contextlib.suppress(Denied):
            module.check_label(label.of(module.name), "domain")
            found.add(module.digest)
    return frozenset(found)


def _carried(label: Label, digests: frozenset[str], stack: Stack) -> Label:
    """Return what a label is called now that was one of the modules with these digests."""
    modules = {module.name: module for module in stack.modules if module.digest not in digests}
    try:
        return Label(
            tuple((n, modules[n].carry(text) if n in modules else text) for n, text in label.parts)
        )
    except Denied:
        return label


def _decode(text: str) -> Label:
    return Label(msgspec.json.decode(text, type=_Parts))


_Parts = tuple[tuple[str, str], ...]
