"""Pictures of flows: what is drawn, as Graphviz's DOT, and its SVG.

The rules this module keeps: the same graph makes the same text; a name in it can't end a string or
be taken for markup. What has the same flows is drawn as one box, where there is much to draw.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence

import msgspec

from skerry.errors import SkerryError
from skerry.flow.bits import each
from skerry.flow.graph import Graph
from skerry.wire.escape import escape

MERGE_FROM = 40
"""From so many labels on, those with the same flows are drawn as one box."""

MAX_DRAWN = 2_000
"""Most boxes of a picture; a graph with more is refused, since nobody could read it."""

MAX_LAYOUT_SECONDS = 120
"""Time for Graphviz to lay a picture out; then it is ended."""

_NAMES_IN_A_BOX = 6
_DENSE = 3
_LAYERED = 60
_GOLDEN = 0.618034


class Box(msgspec.Struct, frozen=True):
    """A box: the names in it, the label that colours it, and its shape.

    `among` says that those in it may send to each other.
    """

    names: tuple[str, ...]
    label: str = ""
    resource: bool = False
    among: bool = False


class Arrow(msgspec.Struct, frozen=True):
    """An arrow between two boxes by their numbers."""

    source: int
    sink: int
    both: bool = False
    refused: bool = False
    text: str = ""


class Drawing(msgspec.Struct, frozen=True):
    """All that is drawn."""

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def draw_graph(graph: Graph, title: str, merge: bool | None = None) -> Drawing:
    """Return the drawing of a graph's labels. Raises `SkerryError` if that is too much.

    `merge` says whether what has the same flows is one box; None: from `MERGE_FROM` labels on.
    """
    nodes = [number for number in range(len(graph.names)) if not graph.gone >> number & 1]
    together = len(nodes) >= MERGE_FROM if merge is None else merge
    groups = _alike(graph, nodes) if together else [[node] for node in nodes]
    if len(groups) > MAX_DRAWN:
        message = f"{len(groups)} boxes are more than {MAX_DRAWN}, which nobody could read"
        raise SkerryError(message, fix="leave labels out by --exclude, or raise --min-weight")
    boxes = []
    for held in groups:
        names = tuple(graph.names[node] for node in held)
        among = len(held) > 1 and bool(graph.rows[held[0]] >> held[1] & 1)
        boxes.append(Box(names, names[0], among=among))
    box_of = {node: number for number, held in enumerate(groups) for node in held}
    pairs = {
        (number, box_of[sink])
        for number, held in enumerate(groups)
        for sink in each(graph.rows[held[0]])
        if box_of[sink] != number
    }
    return Drawing(title, tuple(boxes), tuple(_arrows(pairs)))


def _arrows(pairs: set[tuple[int, int]]) -> Iterator[Arrow]:
    for source, sink in sorted(pairs):
        if (sink, source) not in pairs:
            yield Arrow(source, sink)
        elif source < sink:
            yield Arrow(source, sink, both=True)


def _alike(graph: Graph, nodes: Sequence[int]) -> list[list[int]]:
    """Return the nodes in groups that have the same flows, apart from those among themselves."""
    rows, back = graph.rows, graph.back
    among: dict[tuple[int, int], list[int]] = {}
    for node in nodes:
        among.setdefault((rows[node] | 1 << node, back[node] | 1 << node), []).append(node)
    groups = [held for held in among.values() if len(held) > 1]
    apart: dict[tuple[int, int], list[int]] = {}
    for held in among.values():
        if len(held) == 1:
            apart.setdefault((rows[held[0]], back[held[0]]), []).append(held[0])
    return sorted([*groups, *apart.values()])


def dot_text(drawing: Drawing) -> str:
    """Write a drawing in Graphviz's language."""
    labels = sorted({box.label for box in drawing.boxes})
    hues = {label: number * _GOLDEN % 1 for number, label in enumerate(labels)}
    dense = len(drawing.arrows) > _DENSE * len(drawing.boxes) and len(drawing.boxes) > 8
    layered = not dense and len(drawing.boxes) <= _LAYERED
    engine = "dot" if layered else "sfdp"
    lines = [
        "digraph flows {",
        f"  graph [layout={engine}, overlap=prism, splines=true, rankdir=LR,",
        "    outputorder=edgesfirst,",
        f'    label={_quoted([drawing.title])}, labelloc=t, fontname="sans-serif", pad=0.2,',
        f"    ranksep=0.7, nodesep=0.25, K={'0.6' if dense else '0.9'}];",
        '  node [shape=box, style="rounded,filled", fontname="sans-serif", fontsize=11,',
        '    margin="0.12,0.06", color="#555555"];',
        f'  edge [color="#555555{"70" if dense else ""}", fontname="sans-serif", fontsize=9,',
        "    arrowsize=0.7];",
    ]
    for number, box in enumerate(drawing.boxes):
        colour = f"{hues[box.label]:.3f} 0.22 0.97"
        shape = ", shape=cylinder, style=filled" if box.resource else ""
        lines.append(f'  n{number} [label={_quoted(_words(box))}, fillcolor="{colour}"{shape}];')
    lines += [f"  n{arrow.source} -> n{arrow.sink}{_look(arrow)};" for arrow in drawing.arrows]
    return "\n".join([*lines, "}", ""])


def _words(box: Box) -> list[str]:
    names = list(box.names[:_NAMES_IN_A_BOX])
    more = len(box.names) - len(names)
    if more:
        names.append(f"and {more} more")
    if box.among:
        names.append("↔ among themselves")
    if box.label and box.label not in box.names:
        names.append(f"[{box.label}]")
    return names


def _look(arrow: Arrow) -> str:
    found = ["dir=both"] if arrow.both else []
    if arrow.refused:
        found += ["style=dashed", 'color="#c0392b"', 'fontcolor="#c0392b"']
    if arrow.text:
        found.append(f"label={_quoted([arrow.text])}")
    return f" [{', '.join(found)}]" if found else ""


def _quoted(lines: Sequence[str]) -> str:
    """Write lines of text as a string of DOT, in which a backslash begins an escape."""
    plain = (escape(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(plain) + '"'


def svg(text: str) -> bytes:
    """Lay a DOT text out and return its SVG. Raises `SkerryError` where Graphviz is missing."""
    program = shutil.which("dot")
    if program is None:
        message = "a picture is laid out by Graphviz, which is not on this machine"
        raise SkerryError(message, fix="apt-get install graphviz, or write DOT by --dot FILE")
    try:
        done = subprocess.run(
            [program, "-Tsvg"],
            input=text.encode(),
            capture_output=True,
            timeout=MAX_LAYOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        message = f"Graphviz did not lay the picture out in {MAX_LAYOUT_SECONDS} s"
        raise SkerryError(message, fix="leave labels out by --exclude") from None
    if done.returncode or not done.stdout:
        words = escape(done.stderr.decode("utf-8", "replace").strip()[:300])
        raise SkerryError(f"Graphviz failed: {words or done.returncode}")
    return done.stdout
