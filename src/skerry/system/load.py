"""`system.toml` to `System`: every mistake at once, each with its line, and nothing guessed.

The rule: a `System` comes out only if nothing at all was wrong with the file. Sizes are bounded
before anything is parsed.
"""

from __future__ import annotations

import pwd
import re
from pathlib import Path

from skerry.errors import InputError
from skerry.system.files import read_text
from skerry.system.model import (
    DUMMY_POLICY,
    JAIL_LAYERS,
    MAX_DOMAIN_CHANNELS,
    Accel,
    Alarm,
    Assertion,
    Audit,
    Board,
    Boot,
    ChannelKind,
    ChannelSpec,
    DomainSpec,
    Home,
    Limits,
    MachineKind,
    Overflow,
    RawLabel,
    System,
)
from skerry.system.names import read_names
from skerry.system.resources import (
    check_domains,
    read_resources,
    read_uses,
    with_slots,
)
from skerry.system.section import NAME, NAME_WORDS, Report, Section, echo, meant
from skerry.system.toml_lines import parse_toml

MAX_FILE = 1 << 20
"""Longest system file, in bytes; a longer one is refused unread."""

MAX_POLICIES = 8
"""Most policy files in one system."""

MAX_UID = (1 << 32) - 2
"""Highest uid that `[operators]` may name (the next one means none); a higher one is an error."""

MIN_CPU = 10
"""Least share of processors that a domain may be given, in hundredths of a core: with less, a
machine does not answer in time."""

MAX_CPU = 6400
"""Largest share of processors, in hundredths of a core; a larger one is an error."""

_IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PORT = re.compile(r"(?!skerry\.)[a-z0-9][a-z0-9.-]{0,30}")
_PORT_WORDS = "1 to 31 of a-z, 0-9, . and -, and not begin with 'skerry.'"
_UID = re.compile(r"uid:(0|[1-9][0-9]{0,9})")


def load_system(path: Path) -> System:
    """Read a system file.

    Raises `InputError` with every problem found, in the file's order.
    """
    return parse_system(read_text(path, MAX_FILE), path)


def parse_system(untrusted_text: str, path: Path) -> System:
    """Read the text of a system file that stands (or would stand) at `path`.

    Raises `InputError` with every problem found, in the file's order.
    """
    report = Report(str(path), parse_toml(untrusted_text, str(path)))
    top = Section(report, (), report.document.data)
    top.require("name", 'name = "my-system"')
    top.require("policy", 'policy = "policy.xml"')
    top.require("domains", "[domains.NAME] for each domain")
    domains = _domains(top.section("domains"))
    uids, operators = _operators(top.section("operators"))
    limits = _limits(top.section("limits"))
    resources = read_resources(top.section("resources"), domains, path.parent)
    between = _channels(top.sections("channels"), domains)
    channels = (*between, *read_uses(top, domains, resources, between))
    # One that a domain serves is a link to it and nothing beside.
    resources = {name: spec for name, spec in resources.items() if not spec.served_by}
    domains = with_slots(top, domains, channels)
    check_domains(top, domains, channels)
    alarms = _alarms(top.section("alarm"), domains)
    system = System(
        path=path,
        name=top.text("name", "", NAME, NAME_WORDS),
        policy=_policy(top, path.parent),
        domains=domains,
        channels=channels,
        resources=resources,
        names=read_names(top.section("services")),
        asserts=tuple(_assertion(table) for table in top.sections("assert")),
        accept_missing=_jail(top.section("jail")),
        operators=operators,
        operator_keys=uids,
        limits=limits,
        audit=_audit(top),
        alarms=alarms,
        policy_key=_key(top, "policy-key", path.parent),
        image_key=_key(top, "image-key", path.parent),
        share_templates=_node(top.section("node")),
        manager=top.choice("policy-manager", "process", Home),
        lines=report.document.lines,
    )
    for key, taken in (("domains", domains), ("resources", resources)):
        for name in system.services.keys() & taken.keys():
            top.report((key, name), f"{name} is the node's own domain here; name it otherwise")
    if len(domains) > limits.domains:
        top.problem("domains", f"{len(domains)} domains, but limits.domains is {limits.domains}")
    if len(channels) > limits.channels:
        top.problem("channels", f"{len(channels)} channels, limits.channels is {limits.channels}")
    top.end()
    if report.problems:
        found = dict.fromkeys(report.problems)
        raise InputError(sorted(found, key=lambda problem: problem.line))
    return system


def _policy(top: Section, folder: Path) -> tuple[str, ...]:
    value = top.value("policy")
    names = (value,) if isinstance(value, str) else top.texts("policy")
    if "policy" in top and not 0 < len(names) <= MAX_POLICIES:
        top.problem("policy", f"policy must name 1 to {MAX_POLICIES} files")
    if any(not name or not name.isprintable() for name in names):
        top.problem("policy", "policy must name files")
    return tuple(n if n == DUMMY_POLICY else str((folder / n).absolute()) for n in names)


def _key(top: Section, key: str, folder: Path) -> str:
    name = top.value(key)
    if name is None:
        return ""
    if not isinstance(name, str) or not name or not name.isprintable():
        top.problem(key, f"{key} must name a file, not {echo(name)}")
        return ""
    return str((folder / name).absolute())


def _domains(section: Section) -> dict[str, DomainSpec]:
    domains: dict[str, DomainSpec] = {}
    for name in section.names():
        if not NAME.fullmatch(name):
            section.problem(name, f"a domain's name must be {NAME_WORDS}, not {echo(name)}")
        domains[name] = _domain(section.section(name), name)
    return domains


def _domain(table: Section, name: str) -> DomainSpec:
    table.require("label", 'label = "a label of the policy"')
    boot: Boot = table.choice("boot", "kernel", Boot)
    if boot != "kernel" and "image" in table:
        table.problem("image", f'with boot = "{boot}" a domain has its disk for an image')
    if boot != "kernel" and table.value("machine") == "simulator":
        table.problem("machine", f'only a machine of the kind "qemu" can boot = "{boot}"')
    image = table.text("image", "minimal", _IMAGE, "the name of an image")
    domain = DomainSpec(
        name=name,
        label=table.label("label") if "label" in table else "",
        console=table.label("console") if "console" in table else "",
        image=image if boot == "kernel" else "",
        cpu=table.number("cpu", 0, MIN_CPU, MAX_CPU),
        channels=table.number("channels", MAX_DOMAIN_CHANNELS, 0, MAX_DOMAIN_CHANNELS),
        memory=table.size("memory", 192 << 20, "64M", "1T"),
        cpus=table.number("cpus", 1, 1, 64),
        board=table.choice("board", "auto", Board),
        accel=table.choice("accel", "auto", Accel),
        machine=table.choice("machine", "qemu", MachineKind),
        autostart=table.flag("autostart", True),
        template=table.flag("template", False),
        boot=boot,
    )
    if domain.template and (boot != "kernel" or domain.machine != "qemu"):
        table.problem("template", "only a QEMU that boots the kernel of an image has a template")
    table.texts("uses")  # read with the resources
    table.end()
    return domain


def _channels(tables: list[Section], domains: dict[str, DomainSpec]) -> tuple[ChannelSpec, ...]:
    used: set[tuple[str, str]] = set()
    return tuple(_channel(table, domains, used) for table in tables)


def _channel(
    table: Section, domains: dict[str, DomainSpec], used: set[tuple[str, str]]
) -> ChannelSpec:
    for key, hint in (("kind", '"stream"'), ("from", '"a domain"'), ("to", '"a domain"')):
        table.require(key, f"{key} = {hint}")
    table.require("name", 'name = "the name of the port"')
    source, sink = _domain_name(table, "from", domains), _domain_name(table, "to", domains)
    if source and source == sink:
        table.problem("to", f"a channel needs two domains, this one has {echo(sink)} twice")
    name = table.text("name", "", _PORT, _PORT_WORDS)
    for domain in dict.fromkeys((source, sink)):
        if name and (domain, name) in used:
            table.problem("name", f"domain {domain!r} has two ports named {name!r}")
        used.add((domain, name))
    channel = ChannelSpec(
        kind=table.choice("kind", "stream", ChannelKind),
        source=source,
        sink=sink,
        name=name,
        one_way=table.flag("one-way", False),
        overflow=table.choice("overflow", "block", Overflow),
        size=table.size("size", 0, "4K", "1G"),
    )
    if (channel.kind == "memory") is not bool(channel.size):
        table.problem("size", 'a memory has a size, like size = "1M", and nothing else does')
    if channel.size & (channel.size - 1):
        table.problem("size", 'the size of a memory is a power of two, like "1M" or "4M"')
    if channel.kind == "link" and channel.one_way:
        table.problem("one-way", "a link goes both ways; a stream can be one-way")
    if channel.overflow == "drop" and not channel.one_way:
        table.problem("overflow", 'overflow = "drop" goes with one-way = true')
    table.end()
    return channel


def _domain_name(table: Section, key: str, domains: dict[str, DomainSpec]) -> str:
    value = table.value(key)
    if value is None or (isinstance(value, str) and value in domains):
        return value or ""
    table.problem(key, f"no domain {echo(value)}{meant(value, domains)}")
    return ""


def _assertion(table: Section) -> Assertion:
    """Read one assertion. What its names stand for is known with the policy: labels are among
    them."""
    table.require("never", 'never = "A -> B"')
    value = table.value("never")
    sides = [side.strip() for side in value.split("->")] if isinstance(value, str) else []
    if "never" in table and not (len(sides) == 2 and all(map(_names_something, sides))):
        table.problem("never", f'never must be "A -> B", not {echo(value)}')
        sides = []
    except_ = table.texts("except")
    for text in except_:
        if not _names_something(text):
            table.problem("except", f"except names nothing in {echo(text)}")
    history = table.flag("history", False)
    table.end()
    source, sink = sides or ("", "")
    return Assertion(source, sink, except_, history)


def _names_something(text: str) -> bool:
    return any(name.strip() for name in text.split(","))


def _alarms(section: Section, domains: dict[str, DomainSpec]) -> dict[str, Alarm]:
    alarms: dict[str, Alarm] = {}
    for name in section.names():
        if not NAME.fullmatch(name):
            section.problem(name, f"an alarm's name must be {NAME_WORDS}, not {echo(name)}")
        table = section.section(name)
        stop = table.texts("stop")
        for domain in stop:
            if domain not in domains:
                table.problem("stop", f"no domain {echo(domain)}{meant(domain, domains)}")
        states = table.section("booleans")
        booleans = {boolean: states.flag(boolean, False) for boolean in states.names()}
        if not stop and not booleans:
            section.problem(name, f"the alarm {echo(name)} does nothing: name stop or booleans")
        table.end()
        alarms[name] = Alarm(stop, booleans)
    return alarms


def _jail(table: Section) -> tuple[str, ...]:
    names = table.texts("accept-missing")
    for name in names:
        if name not in JAIL_LAYERS:
            known = meant(name, JAIL_LAYERS) or f"; the layers are: {', '.join(JAIL_LAYERS)}"
            table.problem("accept-missing", f"no layer {echo(name)}{known}")
    table.end()
    return names


def _operators(table: Section) -> tuple[dict[int, str], dict[int, RawLabel]]:
    keys: dict[int, str] = {}
    labels: dict[int, RawLabel] = {}
    for key in table.names():
        label = table.label(key)
        uid = _uid(key)
        if uid is None:
            table.problem(key, f'no user {echo(key)} on this host; write "uid:N" or a user name')
        elif uid in labels:
            table.problem(key, f"{echo(key)} and {echo(keys[uid])} are the same user, uid {uid}")
        else:
            keys[uid], labels[uid] = key, label
    return keys, labels


def _uid(key: str) -> int | None:
    found = _UID.fullmatch(key)
    if found:
        return int(found[1]) if int(found[1]) <= MAX_UID else None
    try:
        return pwd.getpwnam(key).pw_uid
    except (KeyError, ValueError):  # unknown, or with a NUL or a lone surrogate in it
        return None


def _limits(table: Section) -> Limits:
    default = Limits()
    limits = Limits(
        domains=table.number("domains", default.domains, 1, 4096),
        channels=table.number("channels", default.channels, 0, 65536),
    )
    table.end()
    return limits


def _node(table: Section) -> bool:
    share = table.flag("share-templates-across-labels", False)
    table.end()
    return share


def _audit(top: Section) -> Audit:
    """Read `audit = "domain"`, or the table in which that is `home`."""
    default = Audit()
    if isinstance(top.value("audit"), str):
        return Audit(home=top.choice("audit", default.home, Home))
    table = top.section("audit")
    audit = Audit(
        rotate=table.size("rotate", default.rotate, "1M", "1T"),
        keep=table.number("keep", default.keep, 1, 256),
        home=table.choice("home", default.home, Home),
    )
    table.end()
    return audit
