"""FLASK policies as text: recognised by their content, compiled by Debian's own compilers.

The rules this module keeps: the compiler works in a private directory that is removed, with
bounds on time, memory and output; it sees the text and nothing else of ours; what it says against
the text is passed on with the line, and a text that it refuses is never a policy.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from skerry.errors import PolicyError, Problem
from skerry.policy.policydb.read import MAGIC
from skerry.wire.escape import escape
from skerry.xsm.flask.model import Flavour

MAX_SOURCE_BYTES = 32 * 1024 * 1024
"""Longest policy as text; Debian's SELinux policy is 11 MB long. A longer one is refused."""

MAX_COMPILED_BYTES = 64 * 1024 * 1024
"""Most bytes that a compiler may write to one file; beyond it the system ends it."""

MAX_COMPILER_MEMORY = 2 * 1024 * 1024 * 1024
"""Address space of a compiler in bytes; Debian's SELinux policy takes it 124 MB."""

MAX_COMPILE_SECONDS = 60
"""Time for one compilation; Debian's SELinux policy takes 0.9 to 1.5 s. Then it is ended."""

MAX_COMPILER_PROBLEMS = 20
"""Most mistakes that are passed on from one compilation."""

Language = Literal["conf", "cil"]

_VERSIONS: dict[Flavour, int] = {"selinux": 33, "xen": 30}
_MAX_WORDS = 256 * 1024
_MAX_MESSAGE = 300
_PRLIMIT = "/usr/bin/prlimit"  # of util-linux, which every Debian has

# A name that TOML could not begin with: what follows is no `=` and no `.`.
_CONF_START = re.compile(
    rb"(?:class|sid|common|policycap|attribute|type|typeattribute|typealias|bool|role|user|allow"
    rb"|attribute_role|sensitivity|category|dominance|constrain|mlsconstrain|default_(?:user|role"
    rb"|type|range)|module|policy_module)\b(?!\s*[.=]|-)"
)
_BLANK_OR_COMMENT = {
    "#": re.compile(rb"(?:[ \t\r\n\f\v]+|#[^\n]*)*"),
    ";": re.compile(rb"(?:[ \t\r\n\f\v]+|;[^\n]*)*"),
}
_COMMENTS = {"conf": re.compile(rb"#[^\n]*"), "cil": re.compile(rb";[^\n]*")}
_CLASSES = {
    "conf": re.compile(rb"(?<!\S)class\s+([A-Za-z0-9_]+)"),
    "cil": re.compile(rb"\(\s*class\s+([A-Za-z0-9_]+)"),
}
_MLS_CONF = re.compile(rb"(?<!\S)sensitivity\s+[A-Za-z0-9_.]")
_CHECKPOLICY_PLACE = re.compile(r"^([^\s:]+):(\d+):ERROR (.*?)(?: on line \d+:?)?$")
_OTHER_PLACES = (
    re.compile(r" (?:at|on) line (\d+) of ([^\s,;]+)"),
    re.compile(r" at ([^\s:]+):(\d+)"),
)


class _Tool(msgspec.Struct, frozen=True):
    """A compiler, named like its Debian package."""

    name: str
    targets: dict[Flavour, str]
    options: tuple[str, ...]


_TOOLS: dict[Language, _Tool] = {
    "conf": _Tool("checkpolicy", {"selinux": "selinux", "xen": "Xen"}, ()),
    "cil": _Tool("secilc", {"selinux": "selinux", "xen": "xen"}, ("-f", os.devnull)),
}


def language_of(untrusted: bytes) -> Language | None:
    """Tell in which language a text is a FLASK policy, `None` if it is none."""
    start = _after_blanks(untrusted, ";")
    if untrusted[start : start + 1] == b"(":
        return "cil"
    if _CONF_START.match(untrusted, _after_blanks(untrusted, "#")):
        return "conf"
    return None


def target_of(untrusted: bytes, language: Language) -> Flavour:
    """Tell for what a policy is: Xen if it has the class `domain` and not the class `process`."""
    named = set(_CLASSES[language].findall(_COMMENTS[language].sub(b"", untrusted)))
    return "xen" if b"domain" in named and b"process" not in named else "selinux"


def compile_policy(untrusted: bytes, file: str, language: Language) -> bytes:
    """Compile a policy and return the binary. `file` is what the user calls the text.

    Raises `PolicyError`: with the compiler's words where it refuses the text, with the Debian
    package to install where it is missing.
    """
    _refuse_module(untrusted, file, language)
    with tempfile.TemporaryDirectory(prefix="skerry-policy-") as folder:
        work = Path(folder)
        source = f"policy.{language}"
        (work / source).write_bytes(untrusted)
        _run(_argv(untrusted, language, source), work, file, source)
        compiled = work / "compiled"
        content = compiled.read_bytes() if compiled.is_file() else b""
    if not content.startswith(MAGIC):
        raise PolicyError([Problem(file, 0, f"{_TOOLS[language].name} wrote no policy")])
    return content


def _after_blanks(untrusted: bytes, comment: str) -> int:
    found = _BLANK_OR_COMMENT[comment].match(untrusted)
    return found.end() if found else 0


def _refuse_module(untrusted: bytes, file: str, language: Language) -> None:
    start = _after_blanks(untrusted, "#")
    if language == "conf" and re.compile(rb"(?:policy_)?module\b").match(untrusted, start):
        line = untrusted[:start].count(b"\n") + 1
        message = "a policy module is a part of a policy; give the whole, or compile it into one"
        raise PolicyError([Problem(file, line, message)])


def _argv(untrusted: bytes, language: Language, source: str) -> list[str]:
    tool, target = _TOOLS[language], target_of(untrusted, language)
    mls = language == "conf" and _MLS_CONF.search(_COMMENTS["conf"].sub(b"", untrusted))
    return [
        tool.name,
        *("-t", tool.targets[target]),
        *("-c", str(_VERSIONS[target])),
        *(["-M"] if mls else []),
        *tool.options,
        *("-o", "compiled"),
        source,
    ]


def _run(argv: list[str], work: Path, file: str, source: str) -> None:
    found = shutil.which(argv[0])
    if not found:
        raise _missing(argv[0], file)
    with (work / "words").open("w+b") as words:
        try:
            process = subprocess.Popen(
                [*_bounds(), found, *argv[1:]],
                cwd=work,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )
        except OSError as error:
            message = f"{argv[0]} can't be run: {error.strerror}"
            raise PolicyError([Problem(file, 0, message)]) from None
        with process:
            code = _wait(process)
        words.seek(0)
        said = words.read(_MAX_WORDS).decode("utf-8", "replace")
    if code:
        raise PolicyError(_problems(said, file, source) or [_ending(argv[0], code, file)])


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for a compiler within its time, and end it if it takes longer."""
    try:
        return process.wait(MAX_COMPILE_SECONDS)
    except BaseException as error:
        process.kill()
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return -signal.SIGXCPU
        raise


def _bounds() -> list[str]:
    """Return the command that bounds what follows it before it starts: later would be too late."""
    words = [_PRLIMIT]
    for name, kind, limit in (
        ("as", resource.RLIMIT_AS, MAX_COMPILER_MEMORY),
        ("fsize", resource.RLIMIT_FSIZE, MAX_COMPILED_BYTES),
        ("core", resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        words.append(f"--{name}={limit if most == resource.RLIM_INFINITY else min(limit, most)}")
    return [*words, "--"]


def _missing(tool: str, file: str) -> PolicyError:
    message = f"a policy as text is compiled by {tool}, which is not on this machine"
    return PolicyError([Problem(file, 0, f"{message}; apt-get install {tool}")])


def _ending(tool: str, code: int | None, file: str) -> Problem:
    if code == -signal.SIGXCPU:
        return Problem(file, 0, f"{tool} did not end in {MAX_COMPILE_SECONDS} s")
    if code is not None and code < 0:
        return Problem(file, 0, f"{tool} was ended by signal {-code}; the text may be damaged")
    return Problem(file, 0, f"{tool} failed without a word (exit code {code})")


def _problems(untrusted_words: str, file: str, source: str) -> list[Problem]:
    """Make problems of what a compiler said: what names a place, else its first words."""
    found: dict[Problem, None] = {}
    lines = [line.strip() for line in untrusted_words.splitlines() if line.strip()]
    for line in lines:
        placed = _placed(line)
        if placed:
            named, number, message = placed
            where = file if named == source else _shown(named)
            found[Problem(where, number, _shown(message))] = None
    if not found and lines:
        said = [line for line in lines if "error" in line.lower()] or lines
        found = {Problem(file, 0, _shown("; ".join(said[:3]))): None}
    return list(found)[:MAX_COMPILER_PROBLEMS]


def _placed(line: str) -> tuple[str, int, str] | None:
    match = _CHECKPOLICY_PLACE.match(line)
    if match:
        return match[1], int(match[2][:9]), match[3]
    for pattern in _OTHER_PLACES:
        match = pattern.search(line)
        if match:
            number, named = (match[1], match[2]) if match[1].isdigit() else (match[2], match[1])
            message = line[: match.start()] + line[match.end() :]
            return named, int(number[:9]), message
    return None


def _shown(untrusted: str) -> str:
    return escape(untrusted)[:_MAX_MESSAGE]
