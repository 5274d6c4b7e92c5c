"""`skerry flow graph` and `map`: the flows counted, drawn or written out; the permission map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skerry.cli.common import counted, json_option
from skerry.cli.flow_options import Source, graph_options
from skerry.errors import InputError, Problem, SkerryError
from skerry.wire.escape import escape

if TYPE_CHECKING:
    from skerry.flow.draw import Drawing
    from skerry.flow.graph import Graph


@click.command()
@graph_options
@click.option("--svg", metavar="FILE", help="Draw it (needs Graphviz).")
@click.option("--dot", metavar="FILE", help="Write it in Graphviz's language; - for the output.")
@click.option("--possible", is_flag=True, help="Draw all that could be bound, label by label.")
@click.option("--refused", is_flag=True, help="Draw channels that the policy refuses, dashed.")
@json_option
def graph(
    source: Source,
    svg: str | None,
    dot: str | None,
    possible: bool,
    refused: bool,
    as_json: bool,
) -> None:
    """Count the flows of a policy or system, draw them, or write them out as JSON.

    Of a system the picture has the channels of its file; domains are coloured by label, resources
    are cylinders. What has the same flows is one box where there is much to draw.
    """
    drawn = svg is not None or dot is not None
    if "" in (svg, dot):
        raise click.UsageError("--svg and --dot need the name of a file")
    if (possible or refused) and not (source.system and drawn):
        raise click.UsageError("--possible and --refused go with a picture of a --system")
    if possible and (refused or source.configured):
        raise click.UsageError("--possible is all that the policy allows, so nothing is refused")
    if drawn:
        _draw(_drawing(source, possible, refused), svg, dot)
        return
    found = source.graph()
    if as_json:
        click.echo(json.dumps(_as_object(found)))
        return
    click.echo(f"{counted(len(found.names), 'label')}, {counted(found.edges(), 'flow')}")
    if found.gone:
        click.echo(f"left out: {', '.join(map(escape, found.named(found.gone)))}")


def _as_object(graph: Graph) -> dict[str, object]:
    rows = zip(graph.names, graph.rows, strict=True)
    return {
        "labels": graph.names,
        "flows": {name: graph.named(row) for name, row in rows if row},
        "excluded": graph.named(graph.gone),
    }


def _drawing(source: Source, possible: bool, refused: bool) -> Drawing:
    from skerry.flow.draw import draw_graph
    from skerry.node.picture import draw_possible, draw_system

    if source.system is None:
        files = ", ".join(Path(file).name for file in source.policies)
        return draw_graph(source.graph(), files)
    if source.relabels or source.operators:
        return draw_graph(source.graph(), source.system.name)
    setup = source.setup()
    if possible:
        return draw_possible(setup, source.graph())
    if source.exclude:
        raise click.UsageError("--exclude goes with a picture of what is --possible")
    return draw_system(setup, refused=refused)


def _draw(drawing: Drawing, svg: str | None, dot: str | None) -> None:
    from skerry.flow.draw import dot_text
    from skerry.flow.draw import svg as laid_out

    text = dot_text(drawing)
    for file, content in ((dot, text.encode()), (svg, b"")):
        if file is None:
            continue
        made = content or laid_out(text)
        if file == "-":
            click.echo(made, nl=False)
            continue
        try:
            Path(file).write_bytes(made)
        except OSError as error:
            raise SkerryError(f"{file} cannot be written: {error.strerror}") from None


@click.command("map")
@click.option("--policy", metavar="FILE", help="The policy whose classes are wanted.")
@click.option("--target", type=click.Choice(["selinux", "xen"]), help="Or a shipped map by name.")
@click.option("--map", "map_file", metavar="FILE", help="Or another map.")
@json_option
def permission_map(
    policy: str | None, target: str | None, map_file: str | None, as_json: bool
) -> None:
    """Write a permission map in the form that SETools reads: class, permission, way and weight.

    It can be changed and given to any of these commands by --map. With --policy, its classes and
    permissions that the map lacks are an error.
    """
    from skerry.cli.flow_options import load_map
    from skerry.flow.permission_map import map_for, shipped_map

    if not (policy or target or map_file):
        raise click.UsageError("name --policy FILE, --target selinux or xen, or --map FILE")
    found = load_map(map_file) if map_file else None
    if policy:
        from skerry.flow.flask import check_map
        from skerry.policy.load import load_policy
        from skerry.xsm.flask.module import FlaskModule

        module = load_policy(policy)
        if not isinstance(module, FlaskModule):
            raise InputError([Problem(policy, 0, "not a FLASK policy, so it needs no map")])
        found = found or map_for(module.policy)
        check_map(module.policy, found, module.policy.rules)
    elif found is None:
        found = shipped_map("xen" if target == "xen" else "selinux")
    if as_json:
        shown = {
            tclass: {name: [flow.direction, flow.weight] for name, flow in permissions.items()}
            for tclass, permissions in found.classes.items()
        }
        click.echo(json.dumps(shown))
        return
    click.echo(found.setools(), nl=False)
