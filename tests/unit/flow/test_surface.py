"""The library's public surface: small, documented, and used as the documentation shows it."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import skerry.flow

ROOT = Path(__file__).parents[3]


def test_every_public_name_is_there_and_documented() -> None:
    """Each name of `__all__` has a docstring and stands in docs/flow.md."""
    page = (ROOT / "docs/flow.md").read_text(encoding="utf-8")
    for name in skerry.flow.__all__:
        assert inspect.getdoc(getattr(skerry.flow, name)), name
        assert re.search(rf"`{name}[`(]", page), name


def test_the_example_of_the_library_runs() -> None:
    """The lines of the package's docstring do what they say, over an example's policy."""
    text = inspect.getdoc(skerry.flow) or ""
    code = textwrap.dedent(text.partition("\n\n    ")[2] and "    " + text.partition("\n\n    ")[2])
    policy = ROOT / "examples/two-banks/policy.xml"
    lines = code.replace("policy.xml", str(policy)).splitlines()
    scope: dict[str, object] = {}
    exec("\n".join(lines[:-2]), scope)
    assert "bank-b" in eval(lines[-2], scope)
    assert eval(lines[-1], scope) is False
