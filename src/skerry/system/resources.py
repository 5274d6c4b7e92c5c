"""What a system file says of resources, and of which domain uses which.

The rule: a domain gets what it `uses` and nothing else; a resource has a label of its own, and its
name is no domain's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from skerry.system.model import (
    ChannelSpec,
    DomainSpec,
    Format,
    ResourceKind,
    ResourceSpec,
)
from skerry.system.section import NAME, NAME_WORDS, Section, echo, meant

MAX_RESOURCES = 256
"""Most resources of a system; one more is an error."""

MAX_ALLOWED = 256
"""Most destinations of an uplink; one more is an error."""

MAX_RESOLVERS = 3
"""Most name servers of an uplink; one more is an error."""

MAX_PORTS = 64
"""Different ports among an uplink's destinations; one more is an error."""

MAX_DISK_NAME = 20
"""Longest name of a disk, in characters: its guest sees it as a serial number, which has no more.
A longer one is an error."""

SECTOR = 512
"""Bytes of a sector: a disk has a whole number of them."""

_DESTINATION = re.compile(
    r"((?=.{1,253}:)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)"
    r"(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*|\[[0-9a-f:.]{2,45}\]):([1-9][0-9]{0,4})"
)
_READ_ONLY = ":ro"
_SLOTS = frozenset({"link", "memory", "disk", "uplink", "switch"})

_KEYS: Mapping[str, frozenset[str]] = {
    "disk": frozenset({"file", "format", "size", "encrypted", "discard", "shared", "rate"}),
    "uplink": frozenset({"allow", "served-by", "resolvers", "rate"}),
    "switch": frozenset(),
    "tpm": frozenset(),
}
"""The keys of each kind, beside `kind` and `label`."""


def read_resources(
    section: Section, domains: Mapping[str, DomainSpec], folder: Path
) -> dict[str, ResourceSpec]:
    """Read every `[resources.NAME]`."""
    resources: dict[str, ResourceSpec] = {}
    images: dict[str, str] = {}
    for name in section.names():
        if not NAME.fullmatch(name):
            section.problem(name, f"a resource's name must be {NAME_WORDS}, not {echo(name)}")
        if name in domains:
            section.problem(name, f"{name} is a domain already; give the resource another name")
        resources[name] = _resource(section.section(name), name, domains, folder)
        file = os.path.realpath(resources[name].file) if resources[name].file else ""
        if file and (other := images.setdefault(file, name)) != name:
            section.problem(name, f"the disks {other} and {name} have the same file")
    if len(resources) > MAX_RESOURCES:
        section.problem(name, f"{len(resources)} resources; there can be {MAX_RESOURCES}")
    return resources


def _resource(
    table: Section, name: str, domains: Mapping[str, DomainSpec], folder: Path
) -> ResourceSpec:
    table.require("kind", 'kind = "disk"')
    if "served-by" not in table:
        table.require("label", 'label = "a label of the policy for a resource"')
    kind: ResourceKind = table.choice("kind", "disk", ResourceKind)
    for key in sorted(frozenset().union(*_KEYS.values()) - _KEYS[kind]):
        if key in table:
            table.value(key)
            table.problem(key, f"{key} is no key of a resource of the kind {kind}")
    if kind == "disk":
        table.require("file", 'file = "its image"')
    served = table.value("served-by")
    if served is not None and not (isinstance(served, str) and served in domains):
        table.problem("served-by", f"no domain {echo(served)}{meant(served, domains)}")
        served = None
    resource = ResourceSpec(
        name=name,
        kind=kind,
        label=table.label("label") if "label" in table else "",
        file=_file(table, folder),
        format=table.choice("format", "raw", Format),
        size=table.size("size", 0, "1M", "64T"),
        encrypted=table.flag("encrypted", False),
        discard=table.flag("discard", False),
        shared=table.flag("shared", False),
        allow=_allowed(table),
        served_by=str(served or ""),
        resolvers=_resolvers(table),
        rate=table.size("rate", 0, "4K", "1T"),
    )
    if kind == "uplink" and bool(resource.allow) is bool(resource.served_by):
        table.problem("kind", "an uplink has allow (destinations) or served-by (a domain)")
    for key in ("label", "resolvers", "rate") if resource.served_by else ():
        if key in table:
            table.problem(key, f"{key} is for {resource.served_by} to have, which serves it")
    if kind == "disk":
        _check_disk(table, resource)
    table.end()
    return resource


def _check_disk(table: Section, disk: ResourceSpec) -> None:
    if len(disk.name) > MAX_DISK_NAME:
        table.problem("kind", f"a disk's name has {MAX_DISK_NAME} characters at most: {disk.name}")
    if disk.size % SECTOR:
        table.problem("size", f"a disk has a whole number of sectors of {SECTOR} bytes")
    if disk.shared and (disk.format != "raw" or disk.discard):
        table.problem("shared", "only a raw disk without discard can be shared")


def _file(table: Section, folder: Path) -> str:
    value = table.value("file")
    if value is None:
        return ""
    if not isinstance(value, str) or not value or not value.isprintable():
        table.problem("file", f"file must name a file, not {echo(value)}")
        return ""
    return str((folder / value).absolute())


def _allowed(table: Section) -> tuple[str, ...]:
    allowed = table.texts("allow")
    for text in allowed:
        found = _DESTINATION.fullmatch(text)
        if found is None or int(found[found.re.groups]) > 65535:
            table.problem("allow", f'allow holds "NAME-OR-ADDRESS:PORT", not {echo(text)}')
        elif text.startswith("["):
            table.problem("allow", f"an uplink speaks IPv4, and can't lead to {echo(text)}")
    ports = {text.rpartition(":")[2] for text in allowed}
    if len(ports) > MAX_PORTS:
        table.problem("allow", f"{len(ports)} different ports; there can be {MAX_PORTS}")
    if len(allowed) > MAX_ALLOWED:
        table.problem("allow", f"{len(allowed)} destinations; there can be {MAX_ALLOWED}")
    return allowed


def _resolvers(table: Section) -> tuple[str, ...]:
    """Read the name servers of an uplink."""
    servers = table.texts("resolvers")
    for text in servers:
        host, _, port = text.rpartition(":")
        try:
            IPv4Address(host)
            known = port.isascii() and port.isdecimal() and 0 < int(port) < 65536
        except ValueError:
            known = False
        if not known:
            table.problem("resolvers", f'resolvers holds "IPV4-ADDRESS:PORT", not {echo(text)}')
    if len(servers) > MAX_RESOLVERS:
        table.problem("resolvers", f"{len(servers)} name servers; there can be {MAX_RESOLVERS}")
    return servers


def read_uses(
    top: Section,
    domains: Mapping[str, DomainSpec],
    resources: Mapping[str, ResourceSpec],
    between: Iterable[ChannelSpec],
) -> Iterable[ChannelSpec]:
    """Read what each domain uses, `NAME` or `NAME:ro`, as channels to resources.

    An uplink that a domain serves is a link to that domain. `between` are the other channels, whose
    ports have names that nothing else may have.
    """
    ports = {(end, channel.name) for channel in between for end in (channel.source, channel.sink)}
    for name in domains:
        table = top.section("domains").section(name)
        used: set[str] = set()
        for text in table.texts("uses"):
            called, read_only = text.removesuffix(_READ_ONLY), text.endswith(_READ_ONLY)
            resource = resources.get(called)
            if resource is None:
                table.problem("uses", f"no resource {echo(called)}{meant(called, resources)}")
                continue
            if called in used:
                table.problem("uses", f"uses names {echo(called)} twice")
            if read_only and resource.kind != "disk":
                table.problem("uses", f"only a disk can be read-only, not {echo(called)}")
            if resource.served_by == name:
                table.problem("uses", f"{name} serves {echo(called)}, and can't use it")
            for end in filter(None, (name, resource.served_by)):
                if (end, called) in ports:
                    table.problem("uses", f"domain {end!r} has two ports named {called!r}")
                ports.add((end, called))
            used.add(called)
            if resource.served_by:
                yield ChannelSpec("link", name, resource.served_by, called)
            else:
                yield ChannelSpec(resource.kind, name, called, called, read_only)


def with_slots(
    top: Section, domains: Mapping[str, DomainSpec], channels: Iterable[ChannelSpec]
) -> dict[str, DomainSpec]:
    """Return the domains, each told whether something of it needs a board with slots, or a TPM."""
    channels = list(channels)
    secure = {channel.source for channel in channels if channel.kind == "tpm"}
    need = {end for c in channels if c.kind in _SLOTS for end in (c.source, c.sink)}
    for name in need & domains.keys():
        if domains[name].board in ("microvm", "q35"):
            table = top.section("domains").section(name)
            what = "a disk, a link, a memory or an uplink needs slots"
            table.problem("board", f'{what}: board = "pc", or leave it out')
    return {
        name: msgspec.structs.replace(domain, slots=name in need, tpm=name in secure)
        for name, domain in domains.items()
    }


def check_domains(
    top: Section, domains: Mapping[str, DomainSpec], channels: Collection[ChannelSpec]
) -> None:
    """Report the domains that lack what they boot from, or have more than they may."""
    for name, domain in domains.items():
        table = top.section("domains").section(name)
        own = [channel for channel in channels if name in (channel.source, channel.sink)]
        if len(own) > domain.channels:
            what = f"{len(own)} channels and uses, but channels = {domain.channels}"
            table.problem("channels", f"domain {name!r} has {what}")
        if domain.boot != "kernel" and not any(channel.kind == "disk" for channel in own):
            table.problem("boot", f'boot = "{domain.boot}" needs a disk: name one in uses')
        if domain.template and domain.tpm:
            table.problem("template", "a domain with a TPM has no template: its TPM is its own")
