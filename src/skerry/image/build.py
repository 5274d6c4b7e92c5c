"""Builds an image from its recipe, unprivileged: kernel, initramfs, bill of materials.

The rules: the same inputs give the same bytes; a build whose inputs are in the cache already does
no work; nothing of a package is run but, for an image with SELinux, the compiler of its policy,
jailed and without a network.
"""

from __future__ import annotations

import hashlib
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from skerry.errors import InputError, Problem
from skerry.image import (
    bytecode,
    closure,
    cpio,
    deb,
    kernel,
    library,
    minimal,
    package,
    selinux,
    services,
    spdx,
    store,
)
from skerry.image.cache import locked, workspace
from skerry.image.package import Package
from skerry.image.recipe import Recipe
from skerry.image.store import Image
from skerry.image.tree import APPLETS, FILES, SKERRY, Tree
from skerry.system.files import read_bounded

FORMAT = 4
"""Part of the cache's key: raised when the same inputs are to give other bytes."""

DROP = (
    "usr/share/doc/*",
    "usr/share/doc-base/*",
    "usr/share/man/*",
    "usr/share/info/*",
    "usr/share/locale/*",
    "usr/share/lintian/*",
    "usr/share/bug/*",
    "usr/share/bash-completion/*",
    "usr/share/gcc/*",
    "usr/lib/systemd/*",
    "usr/lib/*-linux-gnu/gconv/*",
)
"""What packages don't put into an image unless its recipe keeps it; the copyright files stay."""

INITTAB_SELINUX = b"::sysinit:/bin/mount -t selinuxfs selinuxfs /sys/fs/selinux\n"
INITTAB_START = b"::respawn:/lib/skerry/start\n"

Progress = Callable[[str, float], None]


class Inputs(msgspec.Struct, frozen=True):
    """All that an image is made of, found but not yet fetched."""

    recipe: Recipe
    kernel: Package
    packages: tuple[Package, ...]
    tools: tuple[Package, ...]
    busybox: Path
    program: Package
    guest: Mapping[str, bytes]
    files: Mapping[str, bytes]
    sources: Mapping[str, str]
    key: str


def build(
    cache: Path, recipe: Recipe, *, anew: bool = False, progress: Progress | None = None
) -> Image:
    """Build an image, or return it from the cache if its inputs are unchanged.

    Works as an ordinary user; a second builder on one cache waits for the first. `anew`: nothing
    that the cache says is believed; apt is asked, all is built, and an image that is there already
    must be the same. `progress` is called with the name of the stage and the fraction of the
    whole, 0 to 1. Raises `InputError` for what the recipe names and is not there, `SkerryError`
    naming what else is missing.
    """
    tell: Progress = progress or (lambda _stage, _fraction: None)
    with locked(cache):
        tell("look up", 0.0)
        if anew:
            package.forget_answers(cache)
        inputs = _inputs(cache, recipe)
        image = store.find(cache, recipe.name, inputs.key, inputs.sources)
        if image is None or anew:
            image = _build(cache, inputs, tell)
        tell("done", 1.0)
        return image


def _inputs(cache: Path, recipe: Recipe) -> Inputs:
    ground = package.resolve_cached(cache, minimal.KERNEL_PACKAGE)
    packages = closure.closure(cache, recipe)
    tools = closure.closure(cache, selinux.TOOLS) if recipe.selinux else ()
    busybox = minimal.busybox_program()
    program = minimal.busybox_package(busybox)
    guest = minimal.guest_files(selinux=recipe.selinux)
    files = _read_files(recipe)
    sources = {
        **{f"{p.name}={p.version}": p.sha256 for p in (ground, *packages)},
        **{f"tool {p.name}={p.version}": p.sha256 for p in tools},
        f"program {program.name}={program.version}": program.sha256,
        **{f"guest/{n}": hashlib.sha256(data).hexdigest() for n, data in guest.items()},
        **{f"files/{n}": hashlib.sha256(data).hexdigest() for n, data in files.items()},
        **(bytecode.COMPILER if recipe.application else {}),
    }
    modes = [(copied.target, copied.mode, copied.range) for copied in recipe.files]
    confined = recipe.selinux, recipe.confine, sorted(recipe.ranges.items())
    picked = DROP, recipe.drop, recipe.keep, _application(recipe)
    shape = picked, modes, recipe.start, confined, _cmdline(recipe)
    whole = repr((FORMAT, recipe.name, shape, sorted(sources.items())))
    key = hashlib.sha256(whole.encode()).hexdigest()
    return Inputs(recipe, ground, packages, tools, busybox, program, guest, files, sources, key)


def _read_files(recipe: Recipe) -> dict[str, bytes]:
    """Read the files that a recipe copies: all together no more than the image may hold."""
    found: dict[str, bytes] = {}
    left = recipe.max_size
    for copied in recipe.files:
        try:
            found[copied.target] = read_bounded(copied.source, left, follow=False)
        except InputError as error:
            message = f"{error} (limits.size, less the files before it)"
            raise InputError([Problem(str(recipe.path), copied.line, message)]) from None
        left -= len(found[copied.target])
    return found


def _build(cache: Path, inputs: Inputs, tell: Progress) -> Image:
    recipe = inputs.recipe
    wanted = [inputs.kernel, *inputs.packages, *inputs.tools]
    debs = package.fetch_all(cache, wanted, lambda part: tell("fetch", 0.05 + 0.45 * part))
    with workspace(cache) as work:
        tell("unpack kernel", 0.5)
        unpacked = deb.files(debs[0], inputs.kernel)
        version = kernel.version(unpacked)
        names = (store.KERNEL, store.BZIMAGE, store.INITRD, store.SBOM)
        files = {name: work / name for name in names}
        files[store.BZIMAGE].write_bytes(unpacked[f"{kernel.BOOT}{version}"])
        kernel.vmlinux(files[store.BZIMAGE], files[store.KERNEL])
        tell("pack", 0.7)
        modules = kernel.module_files(unpacked, version)
        tree = _tree(inputs, debs[1:], modules, work, tell)
        archive = cpio.archive(tree.entries())
        files[store.INITRD].write_bytes(archive)
        listed = wanted[: len(inputs.packages) + 1]
        bill = spdx.document(
            recipe.name, inputs.key, listed, inputs.program, tree.placed, deb.made_at(debs[0])
        )
        files[store.SBOM].write_bytes(bill)
        tell("store", 0.95)
        facts = store.Facts(
            kernel_version=version,
            cmdline=_cmdline(recipe),
            packages=len(listed) + 1,
            files=sum(stat.S_ISREG(one.entry.mode) for one in tree.placed.values()),
            compressed=len(zlib.compress(archive, 6)),
            sources=dict(inputs.sources),
        )
        return store.add(cache, recipe.name, inputs.key, files, facts)


def _application(recipe: Recipe) -> object:
    """Return what decides which modules an image keeps, for its key."""
    if not recipe.application:
        return ()
    return recipe.application, library.ALWAYS, library.ASIDE, library.OPENED


def _cmdline(recipe: Recipe) -> str:
    words = minimal.CMDLINE.split()
    if recipe.selinux:
        words = [word for word in words if word not in ("audit=0", "apparmor=0", "rdinit=/init")]
        words += selinux.CMDLINE.split()
    if recipe.init:
        words = [w for w in words if not w.startswith("rdinit=")] + [f"rdinit=/{recipe.init}"]
    return " ".join(words)


def _tree(
    inputs: Inputs, debs: list[Path], modules: Mapping[str, bytes], work: Path, tell: Progress
) -> Tree:
    recipe = inputs.recipe
    dropped = *DROP, *recipe.drop
    merged = bool(inputs.packages)
    tree = Tree(recipe.max_size, merged=merged, drop=dropped, keep=recipe.keep)
    for entry in minimal.entries(inputs.busybox, inputs.guest, modules):
        applet = stat.S_ISLNK(entry.mode) and entry.path not in minimal.KEPT_APPLETS
        tree.reserve(len(entry.data), "Skerry's own files")
        tree.add(entry, APPLETS if applet else SKERRY)
    for index, (path, facts) in enumerate(zip(debs, inputs.packages, strict=False)):
        tell(f"pack {facts.name}", 0.7 + 0.15 * index / len(inputs.packages))
        deb.add_to(tree, path, facts)
    if recipe.selinux:
        tell("compile the SELinux policy", 0.85)
        wanted = {selinux.POLICY_PACKAGE, *(p.name for p in inputs.tools)}
        pairs = zip((*inputs.packages, *inputs.tools), debs, strict=True)
        found = {facts: path for facts, path in pairs if facts.name in wanted}
        own = inputs.guest[minimal.SELINUX_CIL]
        contexts = "".join(
            selinux.context(tree.path(copied.target), copied.range)
            for copied in recipe.files
            if copied.range
        )
        made = selinux.make(found, inputs.busybox, work, own, contexts)
        for entry in made:
            tree.reserve(len(entry.data), "the SELinux policy")
            tree.add(entry, SKERRY)
        _append_inittab(tree, INITTAB_SELINUX)
    _add_files(tree, inputs)
    if recipe.application:
        tell("compile its Python", 0.9)
        library.prune(tree, recipe.application, services.PYTHON, services.PLACE)
        (work / "bytecode").mkdir()
        folders = (f"{services.PLACE}/", f"usr/lib/{services.PYTHON}/")
        bytecode.add_to(tree, folders, work / "bytecode")
    if recipe.init:
        _require_program(tree, recipe, "init", recipe.init)
    if recipe.start:
        _add_start(tree, recipe)
    if recipe.ranges:
        lines = "".join(f"{range_} {label}\n" for label, range_ in sorted(recipe.ranges.items()))
        tree.add(cpio.file("etc/skerry/ranges", lines.encode()), SKERRY)
    return tree


def _add_files(tree: Tree, inputs: Inputs) -> None:
    recipe = inputs.recipe
    for copied in recipe.files:
        path, data = tree.path(copied.target), inputs.files[copied.target]
        held = tree.placed.get(path)
        if held is not None and (held.origin == SKERRY or stat.S_ISDIR(held.entry.mode)):
            what = "a directory" if stat.S_ISDIR(held.entry.mode) else "Skerry's own"
            message = f"/{path} is {what} in the guest; name another path"
            raise InputError([Problem(str(recipe.path), copied.line, message)])
        tree.reserve(len(data), f"/{path}")
        over = held.origin if held is not None else ""
        tree.add(cpio.file(path, data, mode=copied.mode), FILES, over=over)


# What starts in a template would have its random numbers and its name from before it is one's.
_START = """\
#!/bin/sh
export PATH=/usr/bin:/bin:/usr/sbin:/sbin
cd /run/skerry
[ ! -e asleep ] || { exec 3<>begin; [ -s name ] || read -r _ <&3; exec 3>&-; }
cd /
"""


def _add_start(tree: Tree, recipe: Recipe) -> None:
    _require_program(tree, recipe, "start", recipe.start[0][1:])
    words = [f"/{minimal.CONFINED}", *recipe.start] if recipe.confine else recipe.start
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    script = _START + f"exec {quoted}\n"
    tree.add(cpio.file("lib/skerry/start", script.encode(), mode=cpio.EXECUTABLE), SKERRY)
    _append_inittab(tree, INITTAB_START)


def _append_inittab(tree: Tree, line: bytes) -> None:
    inittab = tree.placed["etc/inittab"].entry
    whole = cpio.file("etc/inittab", inittab.data + line)
    tree.add(whole, SKERRY, over=SKERRY)


def _require_program(tree: Tree, recipe: Recipe, key: str, path: str) -> None:
    """Refuse an image whose first program is not there or can't be run."""
    held = tree.placed.get(tree.path(path))
    if held is None or stat.S_ISDIR(held.entry.mode):
        message = f"{key} names /{path}, which the image does not hold"
    elif stat.S_ISREG(held.entry.mode) and not held.entry.mode & 0o111:
        message = f'{key} names /{path}, which is no program; give it mode = "0755"'
    else:
        return
    line = recipe.lines.get((key,), 0)
    raise InputError([Problem(str(recipe.path), line, message)])
