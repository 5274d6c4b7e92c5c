"""Debian's SELinux policy for a guest: its modules compiled to the one file that a kernel loads.

The package `selinux-policy-default` ships modules, and compiles them when it is installed. Nothing
is installed here, so the same is done aside: `pp` makes CIL of each module, `secilc` the policy of
all. Both come from Debian packages of their own, not from the host, so that the same inputs give
the same bytes; they run in a jail with a read-only root of those packages, no network, no
capability, and never as root. What they leave is read as an enemy's: plain files, bounded.

What is left out is what the package itself disables (`notdefault` in its `postinst`, which is read
and not run).
"""

from __future__ import annotations

import bz2
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from skerry.errors import InputError, SkerryError
from skerry.image import cpio, deb, package
from skerry.image.package import Package
from skerry.image.recipe import GUEST, Recipe
from skerry.image.tree import SKERRY, Tree
from skerry.system.files import read_bounded

POLICY_PACKAGE = "selinux-policy-default"
TOOLS = Recipe(
    "selinux-tools",
    GUEST / "presets/selinux.toml",
    packages=("policycoreutils", "secilc"),
    exclude=("lsb-base",),
)
"""What compiles the policy; none of it goes into an image."""

CMDLINE = "security=selinux audit=1 rdinit=/lib/skerry/selinux-init"
"""What the kernel is told; the first program loads the policy, labels the files and enforces it."""

VERSION = 33
"""The policy's format: the newest that Debian 12's kernel and compiler both know."""

OWN = "skerry"
"""The name of our module of the policy; the package has none of that name."""

DATA = "system_u:object_r:skerry_data_t"
"""The context, but for its range, of the confined service's data."""

MODULE_MAX = 32 << 20
"""Longest module in bytes, unpacked; with a longer one no image is made."""

TOOLS_MAX = 512 << 20
"""Most bytes of the compiler and what it needs, unpacked; with more no image is made."""
RESULT_MAX = 64 << 20
"""Longest file in bytes that the compiler may leave; with a longer one no image is made."""

_CONVERT = 'for module in /w/*.pp; do "$1" "$module" "${module%.pp}.cil" || exit 1; done'
_MODULE = re.compile(r"usr/share/selinux/default/([A-Za-z0-9_-]{1,100})\.pp\.bz2")
_ESCAPED, _IN_BRACKETS = ".^$*+?([{|", ")}] \\"
_ROOT = "etc/selinux/default"
_NOBODY = 65534
_CONFIG = b"SELINUX=enforcing\nSELINUXTYPE=default\n"


def make(
    debs: Mapping[Package, Path], busybox: Path, work: Path, own: bytes, contexts: str
) -> list[cpio.Entry]:
    """Return the compiled policy, its file contexts and `/etc/selinux/config`.

    `debs`: the fetched packages, those of `TOOLS` and `POLICY_PACKAGE`; `busybox`: the shell of the
    jail; `work`: a directory of ours, on a file system that programs may run from; `own`: a module
    in CIL beside the package's; `contexts`: lines of file contexts that count before all others.
    Raises `SkerryError` with the tool's last words.
    """
    root, modules = work / "tools", work / "modules"
    for one in (root, modules):
        one.mkdir()
    tools = Tree(TOOLS_MAX, merged=True)
    tools.add(cpio.directory("w"), SKERRY)
    names: list[str] = []
    for facts, path in debs.items():
        if facts.name == POLICY_PACKAGE:
            names = _write_modules(path, facts, modules)
        else:
            deb.add_to(tools, path, facts)
    _write_out(tools, root)
    (modules / f"{OWN}.cil").write_bytes(own)
    _open_to_nobody(work, modules)
    converter = next((f"/{p.relative_to(root)}" for p in root.glob("usr/lib*/selinux/hll/pp")), "")
    _run(root, modules, busybox, ["/w/busybox", "sh", "-c", _CONVERT, "sh", converter])
    compiled = ["-m", "-c", str(VERSION), "-o", "/w/policy", "-f", "/w/contexts"]
    sources = [f"/w/{name}.cil" for name in (*names, OWN)]
    _run(root, modules, busybox, ["/usr/bin/secilc", *compiled, *sources])
    return [
        cpio.file(f"{_ROOT}/policy/policy.{VERSION}", _result(modules / "policy")),
        cpio.file(
            f"{_ROOT}/contexts/files/file_contexts",
            _result(modules / "contexts") + contexts.encode(),
        ),
        cpio.file("etc/selinux/config", _CONFIG),
    ]


def _result(path: Path) -> bytes:
    try:
        return read_bounded(path, RESULT_MAX, follow=False)
    except InputError as error:
        raise SkerryError(
            f"the compiler of the SELinux policy left no such file: {error}"
        ) from None


def context(path: str, range_: str) -> str:
    """Return the line of file contexts by which a plain file is the service's data of a range.

    What libselinux can't have in a line (a space, what is not ASCII) or would take for a part of a
    folder's name (a backslash) is written so that the line stands for this path alone.
    """
    return f"/{''.join(map(_pattern, path.encode()))} -- {DATA}:{range_}\n"


def _pattern(byte: int) -> str:
    char = chr(byte)
    if char in _ESCAPED:
        return f"\\{char}"
    if byte >= 0x80 or char in _IN_BRACKETS:
        return f"[\\x{byte:02x}]"
    return char


def _write_out(tree: Tree, root: Path) -> None:
    """Write the files of the tools: none lies behind a link, and the folder is empty."""
    for entry in sorted(tree.entries(), key=lambda entry: entry.path):
        target = root / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(entry.mode):
            target.mkdir(exist_ok=True)
        elif stat.S_ISLNK(entry.mode):
            target.symlink_to(entry.data.decode())
        else:
            target.write_bytes(entry.data)
            target.chmod(entry.mode & 0o777)


def _write_modules(path: Path, facts: Package, target: Path) -> list[str]:
    """Write the modules that the package would enable, and return their names, sorted."""
    left_out = _left_out(path)
    names = []
    for file, data in sorted(deb.files(path, facts).items()):
        found = _MODULE.fullmatch(file)
        if found is not None and found[1] not in left_out:
            (target / f"{found[1]}.pp").write_bytes(_unpacked(found[1], data))
            names.append(found[1])
    if not names:
        raise SkerryError(f"{POLICY_PACKAGE} holds no modules")
    return names


def _left_out(path: Path) -> set[str]:
    text = package.run(["dpkg-deb", "-I", str(path), "postinst"], package="dpkg").decode()
    named = re.search(r'^ *notdefault="(.*)"$', text, re.MULTILINE)
    if named is None:
        raise SkerryError(f"{POLICY_PACKAGE} does not say which modules it disables")
    return set(named[1].split())


def _unpacked(name: str, packed: bytes) -> bytes:
    try:
        data = bz2.BZ2Decompressor().decompress(packed, MODULE_MAX)
    except OSError as error:
        raise SkerryError(f"the module {name} of {POLICY_PACKAGE} is damaged") from error
    if len(data) >= MODULE_MAX:
        raise SkerryError(f"the module {name} is over {MODULE_MAX >> 20} MiB")
    return data


def _open_to_nobody(work: Path, modules: Path) -> None:
    """As root, let the tools' uid reach its root and own the directory that it writes to."""
    if os.geteuid() == 0:
        for path in (work, work / "tools"):
            path.chmod(0o755)
        for path in (modules, *modules.iterdir()):
            os.chown(path, _NOBODY, _NOBODY)


def _run(root: Path, modules: Path, busybox: Path, argv: list[str]) -> None:
    """Run one tool in its jail, with `modules` as `/w`."""
    identity = f"--reuid={_NOBODY} --regid={_NOBODY} --clear-groups".split()
    first = ["setpriv", *identity] if os.geteuid() == 0 else []
    jail = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
    jail += ["--cap-drop", "ALL", "--clearenv"]
    places = ["--ro-bind", str(root), "/", "--bind", str(modules), "/w", "--chdir", "/w"]
    places += ["--ro-bind", str(busybox), "/w/busybox"]
    package.run([*first, *jail, *places, *argv], package="bubblewrap")
