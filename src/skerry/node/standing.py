"""What the journal says stands: domains, channels, the policy in force. Pure.

The rule this module keeps (law 7): what stands is what the journal's records say, applied in their
order and in nothing else, so that a restarted node and the one before it agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from skerry.label import Label
from skerry.monitor.protocols import Kind, Overflow

MAX_MAKERS = 64
"""Nodes of one life whose leavings are swept at its end; those of earlier ones go later, by age."""


RESOURCE = "resource:"
"""Before a name, in the place of an incarnation: a resource, which has none."""


class Footprint(msgspec.Struct, frozen=True):
    """What belongs to one start of a domain outside of the node.

    `incarnation` names its process at the supervisor, `uid` its jail's host uid; `groups` and
    `device` are made for it and go with it.
    """

    incarnation: str
    kind: str
    uid: int = 0
    groups: tuple[str, ...] = ()
    device: str = ""


class DomainEntry(msgspec.Struct, frozen=True):
    """A domain whose machine stands; times are seconds of the monotonic clock."""

    name: str
    label: Label
    started: float
    footprint: Footprint


class ChannelEntry(msgspec.Struct, frozen=True):
    """A live channel; `source` and `sink` are incarnations, since a name can be started again.

    The sink of a use is a resource's, `RESOURCE` before its name. `uid` is the host uid of its
    relay or helper, 0 where it has none; `asked`: see `Channel`.
    """

    number: int
    kind: Kind
    source: str
    sink: str
    port: str
    one_way: bool
    generation: int
    record: int
    since: float
    for_s: float | None = None
    overflow: Overflow = "block"
    uid: int = 0
    size: int = 0
    asked: str = ""


class Standing(msgspec.Struct):
    """Everything that goes on after a restart.

    `token` names the life of a supervisor that this belongs to; `setup` the file that holds the
    system and the policy in force. `channel` is the highest number that may have been given, `uid`
    the highest uid that was. `rising`: what starts by itself has not all been started yet. `makers`
    are the nodes' process numbers, the last `MAX_MAKERS` of them. `offers`: the incarnation that
    serves each service.
    """

    token: str = ""
    setup: str = ""
    generation: int = 1
    channel: int = 0
    uid: int = 0
    rising: bool = False
    makers: tuple[int, ...] = ()
    domains: dict[str, DomainEntry] = {}
    channels: dict[int, ChannelEntry] = {}
    offers: dict[str, str] = {}

    def apply(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one record into account. Raises `ValueError` for one that makes no sense."""
        try:
            self._apply(event, fields)
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise ValueError(f"a record {event} that makes no sense: {error}") from None

    def _apply(self, event: str, fields: Mapping[str, Any]) -> None:
        match event:
            case "begin":
                fresh = msgspec.convert(fields, Standing, strict=False)
                for name in self.__struct_fields__:
                    setattr(self, name, getattr(fresh, name))
            case "setup":
                self.setup, self.generation = str(fields["setup"]), int(fields["generation"])
                for incarnation, label in fields["labels"].items():
                    self._relabel(incarnation, label)
            case "domain":
                entry = msgspec.convert(fields, DomainEntry, strict=False)
                self.domains[entry.footprint.incarnation] = entry
                self.uid = max(self.uid, entry.footprint.uid)
            case "label":
                self._relabel(fields["incarnation"], fields["label"])
            case "ended":
                self.domains.pop(fields["incarnation"], None)
                self.offers = {n: i for n, i in self.offers.items() if i != fields["incarnation"]}
            case "offer":
                self.offers[fields["service"]] = str(fields["incarnation"])
            case "withdrawn":
                self.offers.pop(fields["service"], None)
            case "channel":
                channel = msgspec.convert(fields, ChannelEntry, strict=False)
                self.channels[channel.number] = channel
                self.channel = max(self.channel, channel.number)
                self.uid = max(self.uid, channel.uid)
            case "numbers":
                self.channel = max(self.channel, int(fields["channel"]))
            case "gone":
                for number in fields["channels"]:
                    self.channels.pop(number, None)
            case "risen":
                self.rising = False
            case "whole" | "recovered" | "lost":
                pass
            case _:
                raise ValueError(f"a record {event}, which no journal has")

    def _relabel(self, incarnation: str, label: object) -> None:
        if incarnation in self.domains:
            self.domains[incarnation] = msgspec.structs.replace(
                self.domains[incarnation], label=msgspec.convert(label, Label)
            )

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield records that say the same, the last of which is `whole`."""
        head = msgspec.structs.replace(self, domains={}, channels={})
        yield "begin", msgspec.to_builtins(head)
        for domain in self.domains.values():
            yield "domain", msgspec.to_builtins(domain)
        for channel in self.channels.values():
            yield "channel", msgspec.to_builtins(channel)
        yield "whole", {}
