"""The documentation names only what exists, and says all that it must."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from skerry.node.setup import load_setup

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {part for part in path.relative_to(ROOT).parts if part.startswith(".")}
)
TEST_LINK = re.compile(r"`(tests/[\w/]+\.py)((?:::\w+)+)`")
FILE_LINK = re.compile(r"\]\(([^)#:]+)(?:#[\w-]*)?\)")


def names_in(path: Path) -> set[str]:
    """Return every test function of a file as `::name` or `::Class::name`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.add(f"::{node.name}")
            case ast.Assign(targets=[ast.Name(id=name)]):  # hypothesis: TestX = X.TestCase
                found.add(f"::{name}")
            case ast.ClassDef(body=body):
                inner = (n for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
                found |= {f"::{node.name}::{n.name}" for n in inner}
    return found


def missing_tests(text: str, root: Path) -> list[str]:
    """Return the tests that a text names and the tree does not have."""
    return [
        file + name
        for file, name in TEST_LINK.findall(text)
        if not (root / file).is_file() or name not in names_in(root / file)
    ]


def test_every_promise_is_held_by_a_test_that_exists() -> None:
    """Each row of promises.md names at least one test, and each test it names exists."""
    text = (DOCS / "promises.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| promise ")]
    assert rows
    assert [row for row in rows if not TEST_LINK.search(row)] == []
    assert missing_tests(text, ROOT) == []


def test_a_promise_whose_test_is_gone_is_found() -> None:
    """The control: a link to a test that does not exist is reported."""
    here = "tests/unit/test_docs.py"
    text = f"`{here}::test_no_such` `tests/unit/none.py::test_x` `{here}::names_in`"
    assert missing_tests(text, ROOT) == [f"{here}::test_no_such", "tests/unit/none.py::test_x"]


def test_every_hostile_test_file_stands_behind_a_promise() -> None:
    """Each file in tests/hostile is named in promises.md."""
    named = {file for file, _ in TEST_LINK.findall((DOCS / "promises.md").read_text("utf-8"))}
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "tests/hostile").rglob("test_*.py")}
    assert files - named == set()


def test_the_generated_parts_are_up_to_date() -> None:
    """`./run docs` would change nothing."""
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_named_limit_says_what_happens_there() -> None:
    """Each limit in limits.md has a text, which is its docstring in the code."""
    rows = (DOCS / "limits.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if row.endswith("| - |")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A relative link in a page names a file that exists."""
    targets = FILE_LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_first_system_of_the_readme_is_accepted(tmp_path: Path) -> None:
    """The two files shown in the README load as they stand, the system file in ten lines."""
    blocks = re.findall(
        r"```toml\n# (\S+)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S
    )
    assert [name for name, _ in blocks] == ["system.toml", "policy.toml"]
    for name, text in blocks:
        (tmp_path / name).write_text(text, encoding="utf-8")
    setup = load_setup(tmp_path / "system.toml")
    assert set(setup.system.domains) == {"left", "right"}
    assert len(blocks[0][1].splitlines()) <= 10


def test_the_policy_of_the_handbook_is_accepted(tmp_path: Path) -> None:
    """The TOML form shown in the handbook is a policy."""
    text = (DOCS / "handbook.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```toml\n(\[policy\].*?)```", text, re.S)
    path = tmp_path / "policy.toml"
    path.write_text(shown, encoding="utf-8")
    load = importlib.import_module("skerry.policy.load")
    assert [label.name for label in load.load_acm(path).labels] == ["dom0", "broker-a"]


def test_every_command_is_in_the_handbook() -> None:
    """The handbook's section on commands names every command of the command line."""
    commands = importlib.import_module("skerry.cli.main").COMMANDS
    section = (DOCS / "handbook.md").read_text("utf-8").split("## Commands")[1].split("\n## ")[0]
    assert [name for name in commands if not re.search(rf"\b{name}\b", section)] == []


def test_every_layer_of_the_jail_is_in_the_handbook() -> None:
    """The handbook names exactly the layers that a system file may accept as missing."""
    text = (DOCS / "handbook.md").read_text("utf-8")
    (listed,) = re.findall(r"The layers of the jail: (.*?)\. `up`", text, re.S)
    layers = importlib.import_module("skerry.system.model").JAIL_LAYERS
    assert re.findall(r"`([\w-]+)`", listed) == list(layers)
