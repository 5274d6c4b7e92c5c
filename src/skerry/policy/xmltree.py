"""Untrusted XML text to a small tree with line numbers, within bounds, or a `PolicyError`.

The rule this module keeps: nothing outside the text itself counts. Document types and entities
are refused (so nothing expands and nothing is fetched), the encoding is UTF-8, size, depth and
number of elements are bounded, and every way in which the text can be broken is one error.
"""

from __future__ import annotations

from xml.parsers import expat

from skerry.errors import PolicyError, Problem

MAX_DEPTH = 16
"""Deepest nesting of elements; sHype's schema needs seven."""

MAX_ELEMENTS = 100_000
"""Most elements of one document; more are refused."""

_SEPARATOR = " "  # between namespace and name; can't occur in either


class Element:
    """One element: namespace and name, attributes by (namespace, name), text, children, line."""

    __slots__ = ("attributes", "children", "line", "name", "namespace", "text")

    def __init__(self, untrusted_name: str, line: int) -> None:
        self.namespace, self.name = _split(untrusted_name)
        self.line = line
        self.attributes: dict[tuple[str, str], str] = {}
        self.children: list[Element] = []
        self.text = ""

    def child(self, name: str) -> Element | None:
        """Return the first child of that name."""
        return next((child for child in self.children if child.name == name), None)

    def all(self, name: str) -> list[Element]:
        """Return the children of that name."""
        return [child for child in self.children if child.name == name]

    def words(self) -> str:
        """Return the text with white space collapsed, as it is spread when pretty-printed."""
        return " ".join(self.text.split())


def parse_xml(untrusted: bytes, file: str) -> Element:
    """Return the root element. Raises `PolicyError` with the line of the first fault."""
    builder = _Builder(file)
    try:
        builder.parser.Parse(untrusted, True)
    except expat.ExpatError as error:
        raise builder.error(expat.ErrorString(error.code), error.lineno) from None
    except (ValueError, LookupError) as error:
        raise builder.error(f"not readable as XML: {error}") from None
    if builder.root is None:
        raise builder.error("the document has no element")
    return builder.root


class _Builder:
    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Element | None = None
        self.open: list[Element] = []
        self.texts: list[list[str]] = []
        self.count = 0
        parser = self.parser = expat.ParserCreate("utf-8", _SEPARATOR)
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        parser.buffer_text = True
        parser.XmlDeclHandler = self.declaration
        parser.StartDoctypeDeclHandler = self.refuse
        parser.EntityDeclHandler = self.refuse
        parser.UnparsedEntityDeclHandler = self.refuse
        parser.SkippedEntityHandler = self.refuse
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.characters

    def error(self, message: str, line: int = 0) -> PolicyError:
        return PolicyError([Problem(self.file, line or self.parser.CurrentLineNumber, message)])

    def refuse(self, *_: object) -> None:
        raise self.error("document types and entities are not accepted; remove the DOCTYPE")

    def declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding and encoding.lower() not in ("utf-8", "us-ascii"):
            raise self.error(f"encoding {encoding!r} is not accepted; write the policy in UTF-8")

    def start(self, untrusted_name: str, untrusted_attributes: dict[str, str]) -> None:
        self.count += 1
        if len(self.open) >= MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH} elements")
        if self.count > MAX_ELEMENTS:
            raise self.error(f"more than {MAX_ELEMENTS} elements")
        element = Element(untrusted_name, self.parser.CurrentLineNumber)
        for name, value in untrusted_attributes.items():
            element.attributes[_split(name)] = value
        if self.open:
            self.open[-1].children.append(element)
        else:
            self.root = element
        self.open.append(element)
        self.texts.append([])

    def end(self, untrusted_name: str) -> None:
        self.open.pop().text = "".join(self.texts.pop())

    def characters(self, untrusted_text: str) -> None:
        self.texts[-1].append(untrusted_text)


def _split(untrusted_name: str) -> tuple[str, str]:
    namespace, _, name = untrusted_name.rpartition(_SEPARATOR)
    return namespace, name
