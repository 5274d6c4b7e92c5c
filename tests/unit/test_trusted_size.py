"""The trusted parts: how large they are, and that they rest on the standard library and msgspec."""

from __future__ import annotations

import ast
import sys
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src/skerry"

CORE_LIMIT = 3_000
"""Lines of code of the core: what one reads in an evening."""

PARTS = {
    "core": (
        "label.py",
        "errors.py",
        "xsm/[!de]*.py",
        "monitor/*.py",
        "jail/*.py",
        "supervisor/*.py",
    ),
    "decision": (
        "xsm/dummy.py",
        "xsm/acm/*.py",
        "xsm/flask/*.py",
        "policy/engine.py",
        "policy/service.py",
        "policy/guest.py",
        "wire/port.py",
        "policy/messages.py",
        "policy/manager.py",
        "policy/client.py",
        "policy/candidate.py",
        "policy/replies.py",
        "policy/link.py",
        "policy/verdicts.py",
        "policy/wellformed.py",
        "policy/history.py",
        "policy/update.py",
        "policy/policydb/*.py",
    ),
    "words": ("xsm/explain.py",),
    "probes": ("jail/probe/*.py",),
    "helpers": (
        "channel/*.py",
        "device/*.py",
        "device/*/*.py",
        "machine/qemu/*.py",
        "machine/*.py",
        "audit/*.py",
        "deaths.py",
        "threads.py",
        "system/durable.py",
    ),
}

_SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def files(part: str) -> list[Path]:
    """Return the source files of a part."""
    return sorted(path for pattern in PARTS[part] for path in PACKAGE.glob(pattern))


def code_lines(path: Path) -> int:
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    tree = ast.parse(path.read_bytes())
    documented: set[int] = set()
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            documented |= set(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in _SILENT:
                lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def imported(path: Path) -> set[str]:
    """Return the top-level names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


def test_the_core_is_small_enough_to_be_read_in_an_evening(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each trusted part is printed with its size; the core has a limit."""
    sizes = {part: sum(code_lines(path) for path in files(part)) for part in PARTS}
    with capsys.disabled():
        sys.stdout.write(f"\ntrusted parts, lines of code: {sizes}\n")
    assert 0 < sizes["core"] < CORE_LIMIT


def test_the_core_rests_on_the_standard_library_and_msgspec() -> None:
    """No other package can change what the core does."""
    allowed = set(sys.stdlib_module_names) | {"msgspec", "skerry"}
    foreign = {(path.name, name) for path in files("core") for name in imported(path) - allowed}
    assert foreign == set()
