"""What a system file asks for that is not so: the difference between it and what runs.

The rule this module keeps: it only compares, and does nothing; what is the same in both is in no
part of a difference, so nothing that acts on one can touch it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from skerry.label import Label
from skerry.monitor.protocols import COLD
from skerry.node.plan import words
from skerry.node.setup import Setup, carried, carry
from skerry.system.model import ChannelSpec, DomainSpec

RESTART_KEYS = ("image", "boot", "memory", "cpus", "cpu", "board", "accel", "machine")
"""What a running machine can't change: a domain with another value is stopped and started."""


class Live(msgspec.Struct, frozen=True):
    """What there is now: the label of every domain that has not ended, and every channel."""

    labels: Mapping[str, Label]
    channels: Mapping[int, ChannelSpec]


class Difference(msgspec.Struct, frozen=True):
    """What must be done, in its order.

    `cut`: channels that the file had and has no more, `forget` those of them that are not bound.
    `remove`: domains that it has no more. `restart`: domains and why they must be. `policy`:
    another one is to come into force. `settings`: what else the owner fixed and is now another;
    `define`: domains whose definition changes though nothing is done to them. `relabel`: domains
    and their new labels. `start`, `bind`: what should run and be bound and is not; `add`: channels
    that are new in the file; `redefined`: domains whose definition changes, `define` among them.
    """

    cut: Mapping[int, ChannelSpec]
    forget: tuple[ChannelSpec, ...]
    remove: tuple[str, ...]
    restart: Mapping[str, str]
    policy: bool
    settings: tuple[str, ...]
    define: tuple[str, ...]
    relabel: Mapping[str, Label]
    start: tuple[str, ...]
    bind: tuple[ChannelSpec, ...]
    add: tuple[ChannelSpec, ...]
    redefined: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        """Say whether all is as the file has it."""
        return not any(getattr(self, name) for name in self.__struct_fields__)

    @property
    def governed(self) -> str:
        """Name what only `security load_policy` may change; empty if there is none of it."""
        policy = ["the policy"] if self.policy else []
        defined = [f"the definition of {name}" for name in self.define]
        return ", ".join([*policy, *self.settings, *defined])

    def words(self) -> list[str]:
        """Return what is to be done, one line each."""
        bound = set(self.bind)
        return [
            *(f"cut channel {number}: {words(spec)}" for number, spec in self.cut.items()),
            *(f"remove channel {words(spec)}" for spec in self.forget),
            *(f"remove {name}" for name in self.remove),
            *(["load the policy"] if self.policy else []),
            *(f"change {setting}" for setting in self.settings),
            *(f"define {name}" for name in self.define),
            *(f"restart {name}: {why}" for name, why in self.restart.items()),
            *(f"relabel {name} to {label}" for name, label in self.relabel.items()),
            *(f"start {name}" for name in self.start if name not in self.restart),
            *(f"bind {words(spec)}" for spec in self.bind),
            *(f"add channel {words(spec)}" for spec in self.add if spec not in bound),
        ]


def differ(now: Setup, wanted: Setup, live: Live) -> Difference:
    """Compare what is in force and runs with what a file asks for."""
    old, new = now.system, wanted.system
    changed = is_other_policy(now, wanted)
    restart = {
        name: why
        for name, label in live.labels.items()
        if name in new.domains and (why := _restarts(name, label, now, wanted))
    }
    start = tuple(
        name
        for name, domain in new.domains.items()
        if name in restart or (domain.autostart and name not in live.labels)
    )
    relabel = {
        name: wanted.labels[name]
        for name, label in live.labels.items()
        if name in new.domains
        and name not in restart
        and carry(wanted.stack, label, now.stack) != wanted.labels[name]
    }
    redefined = tuple(name for name in new.domains if _defined_otherwise(name, now, wanted))
    same = {name for name, spec in new.resources.items() if old.resources.get(name) == spec}
    runs = {*(name for name in live.labels if name in new.domains), *start, *new.resources}
    had, has = set(old.channels), set(new.channels)
    bound = set(live.channels.values())
    # A channel whose domain is started anew falls with it, or has outlived it, and is bound again.
    other = {*start, *(old.resources.keys() - same)}
    stays = {spec for spec in bound if not {spec.source, spec.sink} & other}
    return Difference(
        cut={
            number: spec
            for number, spec in live.channels.items()
            if spec in had - has or spec.sink in old.resources.keys() - same
        },
        forget=tuple(s for s in old.channels if s not in has and s not in bound),
        remove=tuple(name for name in old.domains if name not in new.domains),
        restart=restart,
        policy=changed,
        settings=_settings(now, wanted),
        # An allowed start can't stand for another label: the name is its owner's.
        define=tuple(
            name
            for name in redefined
            if name not in {*start, *relabel}
            or (name not in relabel and _labelled_otherwise(name, now, wanted))
        ),
        relabel=relabel,
        start=start,
        bind=tuple(
            spec for spec in new.channels if spec not in stays and {spec.source, spec.sink} <= runs
        ),
        add=tuple(spec for spec in new.channels if spec not in had),
        redefined=redefined,
    )


def is_other_policy(now: Setup, wanted: Setup) -> bool:
    """Say whether a file's policies are others than those in force, whatever their files' names.

    Another assertion makes another policy.
    """

    def contents(setup: Setup) -> dict[str, tuple[object, ...]]:
        pairs = zip(setup.stack.modules, setup.policy.sources, strict=True)
        return {
            module.name: (source.content, source.assertions and source.assertions.meaning())
            for module, source in pairs
        }

    return contents(now) != contents(wanted)


def needs_restart(one: DomainSpec, other: DomainSpec) -> list[str]:
    """Return the keys by which two definitions can't be the same running machine."""
    keys = [key for key in RESTART_KEYS if getattr(one, key) != getattr(other, key)]
    return [*keys, *(["board (it needs slots)"] if other.slots and not one.slots else [])]


def _restarts(name: str, label: Label, now: Setup, wanted: Setup) -> str:
    """Return why a running domain must be started anew, nothing if it need not."""
    if name in now.system.domains:
        keys = needs_restart(now.system.domains[name], wanted.system.domains[name])
        if keys:
            return f"its {', '.join(keys)} changes"
        if _cold(name, now, wanted) != _cold(name, wanted, wanted):
            return "what it must have from its start on changes"
    if carry(wanted.stack, label, now.stack) is None:
        return f"the new policy has no label {label}"
    return ""


def _cold(name: str, setup: Setup, wanted: Setup) -> dict[str, object]:
    """Return what a domain must have from its start on, as `_resources` does."""
    defined = _resources(setup, wanted)
    used = [c for c in setup.system.channels if c.source == name and c.kind in COLD]
    return {channel.sink: defined[channel.sink] for channel in used}


def _settings(now: Setup, wanted: Setup) -> tuple[str, ...]:
    """Name what the owner fixed besides the policy and the domains, and is now another."""
    old, new = now.system, wanted.system
    operators = carried(now, wanted.policy).operators
    pairs: dict[str, tuple[object, object]] = {
        "the name": (old.name, new.name),
        "operators": (operators, wanted.operators),
        "the policy key": (now.policy_key, wanted.policy_key),
        "the image key": (old.image_signer, new.image_signer),
        "share-templates-across-labels": (old.share_templates, new.share_templates),
        "limits": (old.limits, new.limits),
        "alarms": (old.alarms, new.alarms),
        "resources": (_resources(now, wanted), _resources(wanted, wanted)),
        "services": (_services(now, wanted), _services(wanted, wanted)),
        "assertions": (set(old.asserts), set(new.asserts)),
        "accept-missing": (set(old.accept_missing), set(new.accept_missing)),
    }
    return tuple(name for name, (one, other) in pairs.items() if one != other)


def _resources(setup: Setup, wanted: Setup) -> dict[str, object]:
    """Return each resource as it is defined, with its label under the wanted policy."""
    return {
        name: (
            msgspec.structs.replace(spec, label=""),
            carry(wanted.stack, setup.labels[name], setup.stack),
        )
        for name, spec in setup.system.resources.items()
    }


def _services(setup: Setup, wanted: Setup) -> dict[str, object]:
    """Return each service as it is declared, with its label under the wanted policy."""
    return {
        name: (service.public, carry(wanted.stack, setup.names[name], setup.stack))
        for name, service in setup.system.names.items()
    }


def _defined_otherwise(name: str, now: Setup, wanted: Setup) -> bool:
    """Say whether a domain's definition is a new one: another label, or another value of a key."""
    if name not in now.system.domains:
        return True
    one, other = (
        msgspec.structs.replace(setup.system.domains[name], label="") for setup in (now, wanted)
    )
    return one != other or _labelled_otherwise(name, now, wanted)


def _labelled_otherwise(name: str, now: Setup, wanted: Setup) -> bool:
    """Say whether a domain that the file before has, too, gets another label."""
    if name not in now.system.domains:
        return False
    return carry(wanted.stack, now.labels[name], now.stack) != wanted.labels[name]
