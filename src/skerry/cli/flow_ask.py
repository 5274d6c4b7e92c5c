"""`skerry flow reach`, `paths` and `cut`: questions to a graph of flows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import click

from skerry.cli.common import counted, json_option
from skerry.cli.flow_options import Source, graph_options, labels_option
from skerry.errors import InputError, Problem
from skerry.wire.escape import escape

if TYPE_CHECKING:
    from skerry.flow.cut import Channel
    from skerry.flow.graph import Graph

_RULES = 4
"""Most rules that are shown for each flow; with --json all are."""

MAX_LENGTH = 10
"""Longest simple path that can be asked for; their number grows with each step."""


@click.command()
@graph_options
@labels_option("--from", "sources", "Where information comes from.", required=False)
@labels_option("--to", "sinks", "Instead: where it comes to.", required=False)
@labels_option("--avoid", "avoid", "Labels that it does not pass through.", required=False)
@json_option
def reach(
    source: Source,
    sources: tuple[str, ...],
    sinks: tuple[str, ...],
    avoid: tuple[str, ...],
    as_json: bool,
) -> None:
    """List every label that information from labels can come to, over whatever chain of flows.

    With --to, every label from which it can come to these.
    """
    from skerry.flow import search
    from skerry.flow.claim import labels

    if bool(sources) is bool(sinks):
        raise click.UsageError("name either --from or --to")
    graph = source.graph()
    start, barred = labels(graph, sources or sinks), labels(graph, avoid)
    _apart(graph, {"the start": start, "--avoid": barred})
    ask = search.reach if sources else search.reach_back
    found = graph.named(ask(graph, start, barred))
    others = len(graph.names) - (start | graph.gone).bit_count()
    if as_json:
        names = list(graph.named(start))
        way = {"from": names} if sources else {"to": names}
        click.echo(json.dumps({**way, "count": len(found), "of": others, "labels": found}))
        return
    for name in found:
        click.echo(escape(name))
    what = "reached" if sources else "reach it"
    click.echo(f"{len(found)} of {counted(others, 'other label')} {what}", err=True)


@click.command()
@graph_options
@labels_option("--from", "sources", "Where paths begin.")
@labels_option("--to", "sinks", "Where they end.")
@labels_option("--avoid", "avoid", "Labels that no path passes through.", required=False)
@click.option("--all-shortest", is_flag=True, help="Every shortest path, not just one.")
@click.option(
    "--max-length",
    type=click.IntRange(1, MAX_LENGTH),
    help="Every path of at most so many flows that visits no label twice.",
)
@click.option(
    "--limit",
    default=100,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Most paths that are shown.",
)
@json_option
def paths(
    source: Source,
    sources: tuple[str, ...],
    sinks: tuple[str, ...],
    avoid: tuple[str, ...],
    all_shortest: bool,
    max_length: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show paths from labels to labels, each flow with the rules that make it."""
    from skerry.flow import search
    from skerry.flow.claim import labels

    if all_shortest and max_length:
        raise click.UsageError("name either --all-shortest or --max-length")
    graph = source.graph()
    one, two, barred = (labels(graph, side) for side in (sources, sinks, avoid))
    _apart(graph, {"--from": one, "--to": two, "--avoid": barred})
    if max_length:
        found: Iterator[list[int]] = search.simple_paths(graph, one, two, max_length, barred)
    else:
        found = search.all_shortest_paths(graph, one, two, barred)
        limit = limit if all_shortest else 1
    count = 0
    for path in islice(found, limit):
        count += 1
        show_path(graph, [graph.names[node] for node in path], as_json)
    if count == limit and (all_shortest or max_length) and next(found, None):
        click.echo(f"there are more than these {limit} paths: see --limit", err=True)
    if not count:
        click.echo("no path" + (f" of at most {max_length} flows" if max_length else ""), err=True)


@click.command()
@graph_options
@labels_option("--from", "sources", "Where flows begin.")
@labels_option("--to", "sinks", "Where they end.")
@click.option(
    "--flows",
    is_flag=True,
    help="Cut flows, not labels; with --configured: channels, a two-way one counts once.",
)
@json_option
def cut(
    source: Source, sources: tuple[str, ...], sinks: tuple[str, ...], flows: bool, as_json: bool
) -> None:
    """Find the fewest labels through which everything passes: to remove them, or to trust them.

    With --flows, the fewest flows; of a system that --configured describes, the fewest channels
    and uses of resources, by name. As many paths that have nothing in common prove that fewer
    would not do.
    """
    from skerry.flow.claim import labels

    graph = source.graph()
    one, two = labels(graph, sources), labels(graph, sinks)
    _apart(graph, {"--from": one, "--to": two})
    if flows and source.configured:
        shown, found = _cut_channels(source, graph, one, two)
    else:
        shown, found = _cut(graph, one, two, flows)
    if as_json:
        click.echo(json.dumps(found))
        return
    for line in shown:
        click.echo(line)
    if not shown:
        click.echo("nothing flows, so there is nothing to cut", err=True)
        return
    noun = next(iter(found)).removesuffix("s")
    common = f"no {noun} in common" if flows else "no label between their ends in common"
    count = counted(len(shown), "path")
    click.echo(f"{counted(len(shown), noun)}, and no fewer: {count} with {common}", err=True)


def _cut(graph: Graph, one: int, two: int, flows: bool) -> tuple[list[str], dict[str, object]]:
    """Return a cut of flows or labels as lines, and for programs."""
    from skerry.flow.cut import cut_flows, cut_labels

    if flows:
        cut = cut_flows(graph, one, two)
        shown = [f"{escape(a)} -> {escape(b)}" for a, b in cut.flows]
        return shown, {"flows": cut.flows, "count": len(shown), "disjoint_paths": cut.paths}
    found = cut_labels(graph, one, two)
    shown = [escape(name) for name in found.labels]
    return shown, {"labels": found.labels, "count": len(shown), "disjoint_paths": found.paths}


def _cut_channels(
    source: Source, graph: Graph, one: int, two: int
) -> tuple[list[str], dict[str, object]]:
    """Return a cut of a system's channels as lines, and for programs."""
    from skerry.flow.cut import Channel, cut_channels

    channels = [
        Channel(made.channel.name, *made.ends, made.one_way, made.channel.kind)
        for made in source.system_flows().configured()
        if made.allowed
    ]
    found = cut_channels(graph, channels, one, two)
    cut = list(zip(found.channels, found.flows, strict=True))
    shown = [
        f"{escape(channel.name)} ({channel.kind}): {escape(a)} {_arrow(channel)} {escape(b)}"
        for channel, (a, b) in cut
    ]
    named = [
        {"name": c.name, "kind": c.kind, "from": a, "to": b, "one_way": c.one_way}
        for c, (a, b) in cut
    ]
    over = [[channel.name for channel in path] for path in found.over]
    paths = {"disjoint_paths": found.paths, "over": over}
    return shown, {"channels": named, "count": len(shown), **paths}


def _arrow(channel: Channel) -> str:
    return "->" if channel.one_way else "<->"


def show_path(graph: Graph, path: Sequence[str], as_json: bool) -> None:
    """Print one path with the rules of its flows."""
    steps = [(one, two, graph.reasons(one, two)) for one, two in pairwise(path)]
    if as_json:
        shown = [{"from": one, "to": two, "rules": rules} for one, two, rules in steps]
        click.echo(json.dumps({"path": list(path), "steps": shown}))
        return
    click.echo(path_line(path))
    for one, two, rules in steps:
        click.echo(f"  {escape(one)} -> {escape(two)}")
        for rule in rules[:_RULES]:
            click.echo(f"      {escape(rule)}")
        if len(rules) > _RULES:
            click.echo(f"      and {counted(len(rules) - _RULES, 'more rule')}")


def path_line(path: Iterable[str]) -> str:
    """Write a path in one line."""
    return " -> ".join(map(escape, path))


def _apart(graph: Graph, sides: dict[str, int]) -> None:
    """Raise `InputError` if a label stands on two sides of a question."""
    seen: dict[str, int] = {}
    for name, side in sides.items():
        for other, before in seen.items():
            if side & before:
                label = graph.named(side & before)[0]
                raise InputError([Problem(name, 0, f"{label} is also named by {other}")])
        seen[name] = side
