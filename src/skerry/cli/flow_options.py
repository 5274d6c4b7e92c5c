"""What the commands of `skerry flow` share: which graph is asked, and what counts as a flow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from skerry.cli.common import Decorated, parse_booleans
from skerry.errors import InputError, PolicyError, Problem

if TYPE_CHECKING:
    from skerry.flow.graph import Graph
    from skerry.flow.permission_map import PermissionMap
    from skerry.flow.policy import Options
    from skerry.node.flows import SystemFlows
    from skerry.node.setup import Setup
    from skerry.xsm.stack import Stack


class Source(msgspec.Struct, frozen=True):
    """The options as typed. Either policies or a system."""

    policies: tuple[str, ...] = ()
    system: Path | None = None
    configured: bool = False
    relabels: bool = False
    operators: bool = False
    map_file: str = ""
    min_weight: int = 1
    exclude: tuple[str, ...] = ()
    exclude_class: tuple[str, ...] = ()
    boolean: tuple[str, ...] = ()
    any_booleans: bool = False
    skip_unknown: bool = False
    context: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise `UsageError` for options that do not go together."""
        if bool(self.policies) is bool(self.system):
            raise click.UsageError("name either --policy FILE (one or several) or --system FILE")
        if not self.system and (self.configured or self.relabels or self.operators):
            raise click.UsageError("--configured, --relabels and --operators go with --system")
        if self.configured and (self.relabels or self.operators):
            raise click.UsageError("--configured is what the file names, without operators")
        self.check_counting()
        only = (self.map_file, self.exclude_class, self.boolean, self.any_booleans, self.context)
        if self.system and (any(only) or self.skip_unknown or self.min_weight != 1):
            message = "a --system is asked with all that decides, not by a permission map"
            raise click.UsageError(f"{message}: leave its options out")

    def check_counting(self) -> None:
        """Raise `UsageError` for options that contradict each other in what counts as a flow."""
        if self.context and self.any_booleans:
            raise click.UsageError("--context is asked under the booleans as they are set")
        if self.boolean and self.any_booleans:
            raise click.UsageError("--boolean and --any-booleans contradict each other")

    def stack(self) -> Stack:
        """Load the policies, with the booleans set."""
        from skerry.policy.source import load_stack
        from skerry.policy.update import with_booleans

        stack = load_stack(self.policies)
        values = parse_booleans(self.boolean)
        return with_booleans(stack, values) if values else stack

    def setup(self) -> Setup:
        """Load the system, with what the state directory knows of who wrote its resources."""
        from skerry.node.setup import load_setup
        from skerry.node.written import with_writers

        if self.system is None:
            raise click.UsageError("name --system FILE")
        return with_writers(load_setup(self.system))

    def system_flows(self, *, plainly: bool = False) -> SystemFlows:
        """Return what asks the system."""
        from skerry.node.flows import SystemFlows

        return SystemFlows(
            self.setup(), relabels=self.relabels, operators=self.operators, plainly=plainly
        )

    def options(self) -> Options:
        """Return what counts as a flow under policies."""
        from skerry.flow.policy import Options

        return Options(
            load_map(self.map_file) if self.map_file else None,
            self.min_weight,
            exclude_classes=self.exclude_class,
            any_booleans=self.any_booleans,
            skip_unknown=self.skip_unknown,
            contexts=self.context,
        )

    def graph(self) -> Graph:
        """Make the graph that is asked."""
        from skerry.flow.claim import labels
        from skerry.node.assertions import known_graph

        if self.system is None:
            graph = known_graph(self.stack(), self.options())
        else:
            graph = self.system_flows().graph("configured" if self.configured else "possible")
        return graph.without(labels(graph, self.exclude)) if self.exclude else graph


def load_map(file: str) -> PermissionMap:
    """Read a permission map of the user's. Raises `InputError`."""
    from skerry.flow.permission_map import MAX_MAP_BYTES, read_map

    return read_map(read_given(file, MAX_MAP_BYTES), file)


def read_given(file: str, limit: int) -> bytes:
    """Read a regular file that the user names, of at most `limit` bytes. Raises `InputError`."""
    from skerry.policy.files import read_regular

    try:
        return read_regular(Path(file), limit)
    except PolicyError as error:
        raise InputError(error.problems) from None
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or "not a file name"
        raise InputError([Problem(file, 0, f"cannot be read: {words}")]) from None


_WHERE = (
    click.option(
        "--policy",
        "policies",
        multiple=True,
        metavar="FILE",
        help="Policy file. Several: all must allow. [repeatable]",
    ),
    click.option(
        "--system",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A system file: its domains and resources, under its policy.",
    ),
    click.option(
        "--configured",
        is_flag=True,
        help="Of a system, only the channels of the file; else all that could be bound.",
    ),
    click.option(
        "--relabels",
        is_flag=True,
        help="Of a system: also under the labels that operators may give its domains.",
    ),
    click.option(
        "--operators",
        is_flag=True,
        help="Of a system: operators carry words where they may open a console or run commands.",
    ),
)
"""Which graph is asked."""

_COUNTING = (
    click.option(
        "--context",
        multiple=True,
        metavar="CONTEXT",
        help="Of a FLASK policy: ask of these whole contexts and of no others, instead of types;"
        " user, role and type may be patterns, as 'system_u:*:*'. [repeatable]",
    ),
    click.option("--map", "map_file", metavar="FILE", help="Another permission map."),
    click.option(
        "--min-weight",
        default=1,
        show_default=True,
        type=click.IntRange(1, 10),
        help="Least weight of a permission that counts.",
    ),
    click.option(
        "--exclude", multiple=True, metavar="LABEL", help="Leave labels out. [repeatable]"
    ),
    click.option(
        "--exclude-class", multiple=True, metavar="CLASS", help="Leave a class out. [repeatable]"
    ),
    click.option(
        "--boolean", multiple=True, metavar="NAME=0|1", help="Set a boolean. [repeatable]"
    ),
    click.option("--any-booleans", is_flag=True, help="Count the rules under every condition."),
    click.option(
        "--skip-unknown",
        is_flag=True,
        help="Take permissions that the map, or a policy that allows them then, lacks for no flow.",
    ),
)
"""What counts as a flow under policies."""


def graph_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose a graph; it gets them as one `Source`."""

    @functools.wraps(command)  # and with it the options that the command has already
    def wrapped(**given: Any) -> Any:
        source = _taken(given)
        source.check()
        return command(source, **given)

    return _with_options(wrapped, (*_WHERE, *_COUNTING))


def counting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command those of them that say what counts; it gets a `Source` that names nothing."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        system = given.pop("system", None)  # the command's own
        counting = _taken(given)
        counting.check_counting()
        return command(counting, system=system, **given)

    return _with_options(wrapped, _COUNTING)


def _taken(given: dict[str, Any]) -> Source:
    """Take the options of a `Source` out of all those that were given."""
    own = {name: given.pop(name) for name in Source.__struct_fields__ if name in given}
    own["map_file"] = own["map_file"] or ""
    return Source(**own)


def _with_options(
    command: Callable[..., Any], options: Sequence[Callable[[Decorated], Decorated]]
) -> Callable[..., Any]:
    found: Callable[..., Any] = command
    for option in reversed(options):
        found = option(found)
    return found


def labels_option(
    flag: str, name: str, what: str, required: bool = True
) -> Callable[[Decorated], Decorated]:
    """Declare an option that names labels, several by repeating it."""
    return click.option(
        flag, name, multiple=True, required=required, metavar="LABEL", help=f"{what} [repeatable]"
    )
