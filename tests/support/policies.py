"""Policies for tests and benchmarks: the real ones, made once and cached, and small compiled ones.

The real ones: Xen's default FLASK policy from Debian's source package `xen`, and the policy of
Debian's package `selinux-policy-default`. Nothing here needs root or installs anything.
"""

from __future__ import annotations

import bz2
import re
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from skerry.image import package
from tests.support import debian

FETCH_XEN = Path(__file__).parents[2] / "examples/xen-policy/fetch.sh"
COMPILE_TIMEOUT_S = 300.0

Target = Literal["selinux", "xen"]
Language = Literal["conf", "cil"]


def xen(version: Literal[24, 30] = 30) -> Path:
    """Return Xen's default policy as it is shipped."""
    return _xen() / f"xen.{version}"


def xen_mls() -> Path:
    """Return Xen's default policy with MLS switched on.

    As shipped, its MLS part names three permissions that Xen no longer has; they are left out.
    """
    plain = _xen()
    made = debian.cached("xen-mls", plain.name, lambda work: _make_xen_mls(work, plain))
    return made / "xen.30"


def selinux() -> Path:
    """Return Debian's SELinux policy as its package installs it, with MCS; version 33."""
    tools = debian.unpacked("policycoreutils")
    recipe = "default modules, declared more than once or not, version 33"
    made = debian.cached("selinux", recipe, lambda work: _make_selinux(work, tools))
    return made / "policy.33"


def _xen() -> Path:
    def make(work: Path) -> None:
        _compile(["sh", str(FETCH_XEN), str(work)])

    return debian.cached("xen", FETCH_XEN.read_text(), make)


def _make_xen_mls(work: Path, plain: Path) -> None:
    source = work / "source"
    shutil.copytree(plain / "source", source)
    policy = source / "tools/flask/policy"
    mls = policy / "policy/mls"
    stale = r"\b(getextvcpucontext|setextvcpucontext|scheduler) "
    mls.write_text(re.sub(stale, "", mls.read_text().replace("context }", "context  }")))
    argv = ["make", "-s", "-C", str(policy), "-f", "Makefile.common", "CONFIG_MLS=y"]
    _compile([*argv, f"FLASK_BUILD_DIR={work}", "XEN_FULLVERSION=mls", "OUTPUT_POLICY=30"])
    (work / "xenpolicy-mls").rename(work / "xen.30")


def _make_selinux(work: Path, tools: Path) -> None:
    root, modules = work / "root", work / "modules"
    deb = debian.fetch("selinux-policy-default")
    debian.unpack(deb, root)
    modules.mkdir()
    # The package installs all its modules and then disables these.
    named = re.search(r'^ *notdefault="(.*)"$', debian.script(deb, "postinst"), re.MULTILINE)
    assert named, "the package's postinst names no modules to disable"
    left_out = {f"{name}.pp.bz2" for name in named[1].split()}
    convert = next(tools.glob("usr/lib*/selinux/hll/pp"))
    written = []
    for packed in sorted(root.glob("usr/share/selinux/default/*.pp.bz2")):
        if packed.name in left_out:
            continue
        module = modules / packed.name.removesuffix(".bz2")
        module.write_bytes(bz2.decompress(packed.read_bytes()))
        written.append(module.with_suffix(".cil"))
        _compile([str(convert), str(module), str(written[-1])])
    # Debian 13's modules declare some roles more than once; semodule lets them, by this option.
    argv = ["secilc", "-m", "-c", "33", "-f", "/dev/null", "-o", str(work / "policy.33")]
    _compile([*argv, *map(str, written)])
    shutil.rmtree(root)
    shutil.rmtree(modules)


XEN_CLASSES = """\
class domain
class domain2
class event
class grant
class resource
class security
sid kernel
sid security
class domain { create transition }
class domain2 { relabelfrom relabelto }
class event { create bind send }
class grant { map_read map_write }
class resource { use }
class security { load_policy setbool }
"""
"""The head of a small policy for SELinux that has the classes by which domains are decided."""


def compile_conf(
    source: str, to: Path, target: Target, version: int, *flags: str, mls: bool = False
) -> Path:
    """Compile a policy in the kernel policy language by `checkpolicy`, and return the binary."""
    text = to.with_name(to.name + ".conf")
    text.write_text(source)
    argv = ["checkpolicy", "-t", "Xen" if target == "xen" else "selinux", "-c", str(version)]
    _compile([*argv, *flags, *(["-M"] if mls else []), "-o", str(to), str(text)])
    return to


def compile_cil(source: str, to: Path, target: Target, version: int, *flags: str) -> Path:
    """Compile a policy in CIL by `secilc`, and return the binary."""
    text = to.with_name(to.name + ".cil")
    text.write_text(source)
    argv = ["secilc", "-t", target, "-c", str(version), "-f", "/dev/null", "-o", str(to)]
    _compile([*argv, *flags, str(text)])
    return to


def _compile(argv: list[str]) -> None:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise package.missing(argv[0], argv[0]) from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)[:300]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
