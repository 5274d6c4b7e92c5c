"""A label (security context).

A label has one text for each security module in force (`acm: bank-a`, `flask: u:r:t`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec

from skerry.errors import UnknownLabel

MAX_LABEL = 2048
"""Longest label text of one module, in characters; longer is refused before it is looked up.
A FLASK context with a hundred single categories on both sides takes 1,000."""

MAX_FEW = 16
"""Most modules of a stack, questions of a hook, permissions of a question: a message that names
more of any is refused before there is room made for them."""

_T = TypeVar("_T")
Few = Annotated[tuple[_T, ...], msgspec.Meta(max_length=MAX_FEW)]


class Label(msgspec.Struct, frozen=True, order=True, cache_hash=True):
    """A security context: the text for each module, sorted by module name."""

    parts: Few[tuple[str, str]]

    def of(self, module: str) -> str:
        """Return the text for one module. Raises `UnknownLabel` if the label has none for it."""
        for name, text in self.parts:
            if name == module:
                return text
        raise UnknownLabel(
            f"label {self} has no part for the module {module}",
            fix=f"write label = {{ {module} = ... }}",
        )

    def __str__(self) -> str:
        """Write one text where all modules agree, else `acm=broker,flask=u:r:t`."""
        texts = {text for _, text in self.parts}
        if len(texts) == 1:
            return texts.pop()
        return ",".join(f"{name}={text}" for name, text in self.parts)


def make_label(untrusted_value: str | Mapping[str, str], modules: Sequence[str]) -> Label:
    """Make a label for these modules from a text or a mapping of module to text.

    A bare text stands for every module; `acm=a,flask=u:r:t` is the written form of a mapping.
    The texts are *not* checked against a policy here: the modules do that.

    Raises `UnknownLabel` if a part is missing, names no module in force, is empty or too long.
    """
    if isinstance(untrusted_value, str):
        value = _split(untrusted_value, modules)
    else:
        value = dict(untrusted_value)
    for name in value:
        if name not in modules:
            raise UnknownLabel(
                f"label names the module {name!r}, which is not in force",
                fix=f"the modules are: {', '.join(modules)}",
            )
    parts = ", ".join(f'{name} = "..."' for name in modules)
    typed = ",".join(f"{name}=..." for name in modules)
    for name in modules:
        text = value.get(name, "")
        if not text or len(text) > MAX_LABEL or not text.isprintable():
            raise UnknownLabel(
                f"label needs a printable text of 1 to {MAX_LABEL} characters for module {name}",
                fix=f"write label = {{ {parts} }}, or on the command line {typed}",
            )
    label = Label(tuple(sorted(value.items())))
    if _split(str(label), modules) != value:
        raise UnknownLabel(
            f"label {label} cannot be told from another in writing",
            fix="give the policy's label a name without '=' after a module's name",
        )
    return label


def _split(text: str, modules: Sequence[str]) -> dict[str, str]:
    parts: dict[str, str] = {}
    for piece in text.split(","):
        name, equals, rest = piece.partition("=")
        if equals and name in modules:
            if name in parts:
                raise UnknownLabel(f"label names the module {name!r} twice", fix="name it once")
            parts[name] = rest
        elif parts:  # a comma inside a Flask level: u:r:t:s0:c1,c2
            last = next(reversed(parts))
            parts[last] += "," + piece
        else:
            return dict.fromkeys(modules, text)
    return parts
