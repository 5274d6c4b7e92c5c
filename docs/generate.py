"""Makes the parts of the documentation that follow from the code, between two marks in a file.

The rule: what the code knows is written once. `generate.py` rewrites the parts; with `--check` it
writes nothing and names the files that are out of date (exit code 1).
"""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from skerry.xsm.hooks import HOOKS, Question

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "src"
PACKAGE = SOURCE / "skerry"

_LIMIT = re.compile(r"(MAX_[A-Z_]+|[A-Z_]+_MAX)")


def hooks() -> str:
    """Return the table of hooks."""
    lines = ["| hook | what | asks | when | wall |", "|---|---|---|---|---|"]
    for hook in HOOKS.values():
        asks = "<br>".join(_question(question) for question in hook.asks)
        when = hook.when if hook.cached else f"{hook.when}, never cached"
        lines.append(f"| `{hook.name}` | {hook.what} | {asks} | {when} | {hook.admission or '-'} |")
    return "\n".join(lines)


def _question(question: Question) -> str:
    permissions = ", ".join(question.permissions)
    return f"{question.subject} → {question.target}: `{question.tclass}` {permissions}"


def limits() -> str:
    """Return the table of named limits: every public constant `MAX_…` or `…_MAX` of the code."""
    lines = ["| limit | value | what it bounds, and what happens there |", "|---|---|---|"]
    lines += [f"| `{name}` | `{value}` | {text or '-'} |" for name, value, text in named_limits()]
    return "\n".join(lines)


def named_limits() -> Iterator[tuple[str, str, str]]:
    """Yield each named limit: its dotted name, its value as written, its docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts[1:])
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for statement, after in zip(body, [*body[1:], None], strict=True):
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if _LIMIT.fullmatch(name):
                    yield f"{module}.{name}", ast.unparse(value), _docstring(after)


def _docstring(statement: ast.stmt | None) -> str:
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return " ".join(text.split()).replace("|", "\\|")
    return ""


def sizes() -> str:
    """Return the sizes of the trusted parts, counted as the test that bounds them counts."""
    test = runpy.run_path(str(DOCS.parent / "tests/unit/test_trusted_size.py"))
    lines = ["| part | lines of code | what it holds |", "|---|---|---|"]
    for part, patterns in test["PARTS"].items():
        held = ", ".join(f"`{pattern}`" for pattern in patterns)
        size = sum(test["code_lines"](path) for path in test["files"](part))
        lines.append(f"| {part} | {size} | {held} |")
    return "\n".join(lines)


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "hooks": ("handbook.md", hooks),
    "limits": ("limits.md", limits),
    "sizes": ("threat-model.md", sizes),
}
CHANGES_DAILY = frozenset({"sizes"})
"""Not checked for being up to date: the size tests hold the bounds, the page is informative."""


def _with_part(text: str, name: str, made: str) -> str:
    begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"docs: the marks of the part {name!r} are missing")
    return f"{before}{begin}\n{made}\n{end}{after}"


def main() -> int:
    """Write the parts, or check them."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    for name, (file, make) in PARTS.items():
        path = DOCS / file
        text = path.read_text(encoding="utf-8")
        wanted = _with_part(text, name, make())
        if wanted == text:
            continue
        if not check:
            path.write_text(wanted, encoding="utf-8")
            sys.stdout.write(f"docs: wrote {name} in docs/{file}\n")
        elif name not in CHANGES_DAILY:
            stale.append(f"docs/{file} ({name})")
    if stale:
        sys.stdout.write(f"docs: out of date: {', '.join(stale)}; run ./run docs\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
