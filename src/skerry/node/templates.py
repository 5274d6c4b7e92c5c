"""The templates of a node: found, made at the first start that wants one, and given to clones.

The rules: a template is used only as it was when it was compared, in memory that nothing can write;
one that was altered is a denial, one that is missing or damaged is made anew, and where none can be
had, domains start without. What is made, used and given up stands in the trail.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import msgspec

from skerry.errors import MachineError, SkerryError
from skerry.image.store import Image
from skerry.machine.qemu.cloned import Source
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.template import Template, TemplateUnusable
from skerry.node import paths
from skerry.node import template_store as store
from skerry.node.template_store import Kind, Manifest, TemplateDamaged
from skerry.threads import in_thread

MAX_LOADED = 16
"""Templates that a node has in memory; beyond it the one that was used longest ago is let go, and
read again when it is wanted."""

GROWN_MAX = 64 << 20
"""Bytes by which clones may have made a template in memory grow; beyond it, when one of them ends,
it is let go, and read again when it is wanted."""

TSC_STEP_KHZ = 50_000
"""Steps in which the rate of the time-stamp counter makes a difference: it is measured anew by each
node, and never quite the same. Rates are multiples of this, or nearly."""

Note = Callable[[str, Mapping[str, object]], object]


@cache
def processor() -> str:
    """Return a digest of what this host's processor is and can."""
    wanted = ("model name", "flags")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    words = [line for line in lines if line.startswith(wanted)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def kind_of(spec: QemuSpec, image: Image, root: str, shared: bool) -> Kind:
    """Return what a domain's template must be; `root` names its jail's root by its contents.

    Where they are `shared`, whose it is makes no difference.
    """
    assert spec.kernel is not None
    return Kind(
        image=image.name,
        digest=image.digest,
        kernel=spec.kernel.name,
        memory=spec.memory,
        cpus=spec.cpus,
        board=spec.machine,
        accel=spec.accel,
        root=root,
        processor=processor(),
        tsc=round(spec.tsc_khz / TSC_STEP_KHZ),
        label="" if shared else spec.label,
    )


class _Loaded(msgspec.Struct, frozen=True):
    """A template in memory; no `manifest` where it could not be written to the disk."""

    template: Template
    manifest: Manifest | None
    made: bool


class Templates:
    """All templates of one node. Make it inside a running event loop."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the node's own, and there is one node to it at a time."""
        self._folder = folder
        self._loaded: dict[str, _Loaded] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._work: set[asyncio.Task[_Loaded]] = set()
        self._given_up: dict[str, str] = {}
        self.note: Note = lambda _event, _fields: None
        store.sweep(folder)

    async def find(self, domain: str, kind: Kind, boot: Callable[[], Source]) -> Template:
        """Return the template of a kind, for a domain; boot one if there is none.

        Whoever wants the same one waits meanwhile. Cancelled, the making ends, for which nobody
        waits but who wants that template. Raises `TemplateUnusable` where none can be had,
        `TemplateAltered` and other `Denied`.
        """
        work = asyncio.ensure_future(self._find(kind, boot))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        try:
            found = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.cancel()
            raise
        about = {"ram": found.manifest.ram} if found.manifest else {}
        self.note("cloned", {"domain": domain, "template": kind.key, **about})
        return found.template

    async def _find(self, kind: Kind, boot: Callable[[], Source]) -> _Loaded:
        """Return what there is of a kind, or make it: one at a time, until its threads are done."""
        async with self._locks.setdefault(kind.key, asyncio.Lock()):
            if kind.key in self._given_up:
                raise TemplateUnusable(f"no template: {self._given_up[kind.key]}")
            try:
                found = await self._there(kind) or await self._make(kind, boot)
            except OSError as error:
                raise TemplateUnusable(f"no template: {error}") from error
            self._loaded.pop(kind.key, None)
            self._loaded[kind.key] = found
            for key in list(self._loaded)[:-MAX_LOADED]:
                del self._loaded[key]
        return found

    async def _there(self, kind: Kind) -> _Loaded | None:
        """Return what is in memory and still on the disk, or is read from there."""
        loaded = self._loaded.get(kind.key)
        if loaded is not None and loaded.manifest is None:
            return loaded
        try:
            manifest = await in_thread(store.manifest_of, self._folder, kind)
            if manifest is None:
                return None
            await in_thread(store.used, self._folder, kind)
            if loaded is not None and loaded.manifest == manifest:
                return loaded
            template = await in_thread(store.read, self._folder, manifest)
        except TemplateDamaged as error:
            self._drop(kind, str(error))
            return None
        return _Loaded(template, manifest, made=False)

    async def _make(self, kind: Kind, boot: Callable[[], Source]) -> _Loaded:
        try:
            template = await boot().template()
        except MachineError as error:
            self._give_up(kind, str(error))
            raise TemplateUnusable(f"no template: {error}") from error
        manifest = None
        try:
            paths.make_private(self._folder)
            manifest = await in_thread(store.write, self._folder, kind, template)
            gone = await in_thread(store.prune, self._folder, kind)
        except asyncio.CancelledError:
            store.discard(self._folder, kind)  # the trail has nothing of it
            raise
        except (OSError, SkerryError) as error:
            self.note("template-not-kept", {"template": kind.key, "reason": str(error)})
            return _Loaded(template, manifest, made=True)
        about = {"image": kind.image, "label": kind.label, "removed": gone}
        sums = {"ram": manifest.ram, "state": manifest.state}
        self.note("template-made", {"template": kind.key, **about, **sums})
        return _Loaded(template, manifest, made=True)

    def refused(self, kind: Kind, why: str) -> None:
        """Take note that QEMU did not take a template; one that was just made is not made again."""
        loaded = self._loaded.pop(kind.key, None)
        self._drop(kind, why)
        if loaded is None or loaded.made:
            self._give_up(kind, why)

    def ended(self, kind: Kind) -> None:
        """Let go of a template that has grown too much, as one of its clones has ended."""
        loaded = self._loaded.get(kind.key)
        if loaded is not None and loaded.template.grown() > GROWN_MAX:
            del self._loaded[kind.key]

    async def close(self) -> None:
        """Let go of what is in memory when no making is left; clones keep what they have."""
        await asyncio.gather(*self._work, return_exceptions=True)
        self._loaded.clear()

    def _drop(self, kind: Kind, why: str) -> None:
        self.note("template-dropped", {"template": kind.key, "reason": why[:200]})
        store.discard(self._folder, kind)

    def _give_up(self, kind: Kind, why: str) -> None:
        self._given_up[kind.key] = why[:200]
        self.note("template-given-up", {"template": kind.key, "reason": why[:200]})
