r"""Text from a guest, a peer or a file, made safe to be shown.

The rule: it is shown as plain text in its own order. Every character that is not printable,
changes the direction of the text, joins onto its neighbour or looks like nothing is written as an
escape (`\x1b`, `\u202e`), and a backslash as two, so that no text can pass for an escape.
"""

from __future__ import annotations

import unicodedata

_RIGHT_TO_LEFT = {"R", "AL", "AN"}
_INVISIBLE = set("\u115f\u1160\u3164\uffa0\u2800\u17b4\u17b5")


def escape(untrusted_text: str) -> str:
    """Return the text with every character escaped that could do more than be read."""
    if untrusted_text.isascii() and untrusted_text.isprintable() and "\\" not in untrusted_text:
        return untrusted_text
    return "".join(_escape(char) for char in untrusted_text)


def _escape(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isascii() and char.isprintable():
        return char
    harmless = (
        char.isprintable()
        and char not in _INVISIBLE
        and not unicodedata.category(char).startswith("M")
        and unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT
    )
    return char if harmless else char.encode("unicode_escape").decode()
