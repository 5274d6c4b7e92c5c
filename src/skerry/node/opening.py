"""Puts a node together: a fresh one from the user's files, or the next one after a restart.

The rules (law 7): whether this is a restart is for the supervisor to say, which holds the token of
the life that the journal describes; a restarted node goes on with what was in force, and says what
it found; nothing new is allowed before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from skerry.audit.client import AuditClient
from skerry.audit.disk import Disk, HostDisk
from skerry.audit.writer import AuditTrail
from skerry.channel.stream import StreamBridges
from skerry.deaths import DEATHS
from skerry.device.helper import Start
from skerry.errors import Denied, NotFound, SkerryError, SupervisorError
from skerry.jail import cgroup, device
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import AuditLog
from skerry.node import paths, prefixes
from skerry.node.assertions import load_proven
from skerry.node.bridges import AllBridges
from skerry.node.deciding import ClosedDecider, open_manager
from skerry.node.descriptors import check_descriptors
from skerry.node.digest import code_digest
from skerry.node.helpers import Helpers, accepted_layers
from skerry.node.jails import Identities
from skerry.node.journal import NodeJournal, read_journal, remove_journal
from skerry.node.kept import SetupKeeper, forget_setups, read_setup
from skerry.node.machines import Machines
from skerry.node.makers import all_makers
from skerry.node.node import Node
from skerry.node.reconcile import Prepare
from skerry.node.recording import Recording
from skerry.node.recover import Recovery, end_unknown
from skerry.node.relays import Relays
from skerry.node.replica import Trail
from skerry.node.resources import MakeUses, Resources
from skerry.node.services import Services
from skerry.node.setup import Setup
from skerry.node.standing import MAX_MAKERS, Standing
from skerry.node.written import Written
from skerry.policy.client import Notice
from skerry.policy.source import Policy
from skerry.supervisor.client import Inherited, SpawnFailed, SupervisorClient, SupervisorGone
from skerry.system.model import ResourceKind, System

Report = Callable[[Mapping[str, object]], None]

IDENTITIES = f"{prefixes.OWN}identities"
"""The name under which the supervisor keeps the lock of the node's uids."""

HELPERS_S = 3.0
"""How long the helpers of a dead node may take to write out what they have and end."""


class World(NamedTuple):
    """What a node stands on: the host's own, where a test puts nothing else."""

    disk: Disk = HostDisk()
    clock: Callable[[], float] = time.monotonic
    identities: Callable[[int, int], Identities] = Identities
    machines: Callable[[System, SupervisorClient, Identities], Machines] = Machines
    trail: Callable[[Path, Disk], AuditTrail] | None = None  # None: a process writes it
    manager: Callable[[Helpers, Policy, Notice, int], Awaitable[ClosedDecider]] = open_manager
    makers: Callable[[Start], Mapping[ResourceKind, MakeUses]] = all_makers


HOST = World()


async def _nothing() -> None:
    """Do nothing: it is done already."""


class Opened(msgspec.Struct, frozen=True):
    """A node that can serve; `recovery` is that of a restart, None for a fresh node.

    After a restart `judge` and then `recovery.adopt` must follow; what stands can be taken away
    before, and nothing is allowed until `judge` has returned (which is at once, but where the
    policy manager's domain must be reached first). It raises what `Recovery.judge` does. Set
    `journal.over` when everything was ended: then nothing of it is left behind.
    """

    node: Node
    prepare: Prepare
    trail: Trail
    journal: NodeJournal
    recovery: Recovery | None
    judge: Callable[[], Awaitable[None]] = _nothing


class Life(msgspec.Struct, frozen=True):
    """What a node begins with: fresh, or after a restart."""

    fresh: bool
    setup: Setup
    standing: Standing
    inherited: Inherited


async def open_node(
    system: Path,
    supervisor: SupervisorClient,
    report: Report,
    exits: contextlib.AsyncExitStack,
    world: World = HOST,
) -> Opened:
    """Make the node; what must be closed in the end is left to `exits`.

    Raises `SkerryError`: a fresh node was not made; after a restart, nothing can go on.
    """
    state = await asyncio.to_thread(paths.make_private, paths.state_dir())
    life = await _begin(system, state, supervisor, world)
    setup, standing = life.setup, life.standing
    standing.makers = (*standing.makers, os.getpid())[-MAX_MAKERS:]
    identities = world.identities(standing.uid, life.inherited.kept.get(IDENTITIES, -1))
    exits.callback(identities.close)
    helpers = Helpers(supervisor, identities.take, accepted_layers(setup.system))
    exits.push_async_callback(helpers.close)
    relays = Relays(helpers, identities.take)
    streams = StreamBridges(relay=relays.start)
    exits.callback(streams.close)
    trail = await _open_trail(world, helpers, life, exits)
    DEATHS.late = partial(note_late, trail)
    machines = world.machines(setup.system, supervisor, identities)
    exits.push_async_callback(machines.close)
    machines.templates.note = trail.note
    layers = await _try_out(machines, streams, report, life.fresh)
    first = _first_record(setup, layers, machines.measures())
    await _record(trail, first, life.fresh)
    journal = await NodeJournal.open(paths.journal_file(), supervisor, standing, world.disk)
    exits.push_async_callback(_close, journal, state)
    journal.footprint = machines.footprint
    keeper = SetupKeeper(journal, state)
    if life.fresh:
        await keeper.keep(setup, standing.generation)
        await _keep_token(supervisor, standing.token, identities.lock)
    await keeper.settle(setup, setup, standing.generation, {})
    services, manager = await _deciders(world, helpers, streams, life, trail, journal, exits)
    written = await asyncio.to_thread(Written, paths.written_file())
    resources = Resources(world.makers(relays.serve), written)
    journal.written = resources.save
    exits.callback(resources.close)
    bridges = AllBridges(streams, resources)
    monitor = Monitor(
        manager,
        trail,
        bridges.between,
        world.clock,
        journal=journal,
        max_domains=setup.system.limits.domains,
        max_channels=setup.system.limits.channels,
    )
    monitor.channels.skip(standing.channel)
    resources.follow(monitor, setup)
    node = Node(setup, monitor, machines.make, world.clock, keeper, resources, journal)
    relays.lost, relays.share = partial(_cut_if_there, monitor), node.share
    exits.push_async_callback(node.hypercalls.close)
    node.measured = machines.measured
    prepare = partial(machines.prepare, streams)
    node.helpers["policy manager"] = manager
    if isinstance(trail, AuditClient):
        node.helpers["audit writer"] = trail
    recovery = Recovery(
        monitor,
        journal,
        life.inherited,
        machines.heir,
        machines.forget,
        relays.watch,
        bridges.adopt,
    )
    services.join(node, recovery.adopt_now)
    recovery.take_over()

    judge = partial(_judge, services, manager, recovery, node, life.fresh, report)
    judging = await _now_or_later(judge, later=services.decides and not life.fresh)
    return Opened(node, prepare, trail, journal, None if life.fresh else recovery, judging)


def note_late(trail: AuditLog, what: str, waited_s: float) -> None:
    """Record that something killed was not seen dead when what it served was cut."""
    trail.note("not-seen-dead", {"what": what, "waited_s": waited_s})


async def _begin(system: Path, state: Path, supervisor: SupervisorClient, world: World) -> Life:
    """Find out whether this is a restart, and take over what the supervisor holds."""
    try:
        inherited = await supervisor.inherit()
    except (SpawnFailed, SupervisorGone) as error:
        raise SupervisorError(f"the supervisor hands nothing over: {error}") from None
    await _wait_for_helpers(inherited)
    standing = await asyncio.to_thread(_standing, inherited, world.disk)
    await end_unknown(inherited, standing or Standing())
    if standing is None:
        # Whoever typed `up` proved what is asserted; but these are the files as they are now.
        setup = await asyncio.to_thread(load_proven, system)
        check_descriptors(setup.system.limits)
        return Life(True, setup, Standing(token=secrets.token_hex(8), rising=True), inherited)
    setup = await asyncio.to_thread(read_setup, state, standing.setup)
    return Life(False, setup, standing, inherited)


async def _open_trail(
    world: World, helpers: Helpers, life: Life, exits: contextlib.AsyncExitStack
) -> Trail:
    if world.trail is not None:
        trail = await asyncio.to_thread(world.trail, paths.audit_file(), world.disk)
        exits.push_async_callback(asyncio.to_thread, trail.close)
        return trail
    audit = life.setup.system.audit
    recording = await Recording.open(helpers.start, audit, insist=life.fresh)
    exits.push_async_callback(recording.close)
    return recording.trail


async def _deciders(
    world: World,
    helpers: Helpers,
    streams: StreamBridges,
    life: Life,
    trail: Trail,
    journal: NodeJournal,
    exits: contextlib.AsyncExitStack,
) -> tuple[Services, ClosedDecider]:
    """Return the node's own domains, and the policy manager: begun, or to begin in its domain."""
    policy, generation = life.setup.policy, life.standing.generation
    services = Services(life.setup.system.services, streams, trail)
    exits.push_async_callback(services.close)
    own = services.manager(policy, generation)
    manager = own or await world.manager(helpers, policy, trail.note, generation)
    exits.push_async_callback(manager.close)
    exits.callback(lambda: services.leave(journal.over))
    return services, manager


async def _now_or_later(
    judge: Callable[[], Awaitable[None]], later: bool
) -> Callable[[], Awaitable[None]]:
    """Do it, unless it is for later; return what is left to be done."""
    if later:
        return judge
    await judge()
    return _nothing


async def _judge(
    services: Services,
    manager: ClosedDecider,
    recovery: Recovery,
    node: Node,
    fresh: bool,
    report: Report,
) -> None:
    """Have the node's own domains serve it, and then what stands judged."""
    await services.rise(fresh, report)
    if fresh:  # as it was loaded
        node.labels.proven(node.setup, node.setup.labels)
    policy = node.setup.policy
    await recovery.judge(
        lambda: manager.candidate(policy.stack, policy.sources), services.patience_s
    )
    services.judged()
    await node.coalitions.resume()
    node.hypercalls.resume()


async def _try_out(
    machines: Machines, streams: StreamBridges, report: Report, fresh: bool
) -> Mapping[str, str]:
    """Load the images and try the host; return what became of each layer of the jail.

    A node that goes on does so also where something is missing by now: it only says so.
    """
    failures = await asyncio.to_thread(machines.load_images)
    if failures and fresh:
        raise failures[0]
    layers = await machines.self_test(streams) if fresh else {}
    try:
        await machines.choose_accel(report)
    except SkerryError as error:
        if fresh:
            raise
        failures.append(error)
    for failure in failures:
        report({"event": "note", "text": f"warning: {failure}"})
    return layers


def _cut_if_there(monitor: Monitor, channel: int) -> None:
    """Cut a channel whose relay has ended; that it was cut before is the rule."""
    with contextlib.suppress(NotFound):
        monitor.cut(channel, "its relay or helper has ended")


async def _close(journal: NodeJournal, state: Path) -> None:
    await journal.close()
    if journal.over:
        await asyncio.to_thread(remove_journal, paths.journal_file())
        await asyncio.to_thread(forget_setups, state)
        await asyncio.to_thread(cgroup.sweep, journal.standing.makers)
        await asyncio.to_thread(device.sweep, paths.devices_dir(), journal.standing.makers)


async def _wait_for_helpers(inherited: Inherited) -> None:
    """Let what served the dead node write out what it has; then its files are ours."""
    lasting = prefixes.DOMAIN, prefixes.RELAY
    helpers = [p for name, p in inherited.processes.items() if not name.startswith(lasting)]
    if helpers:
        await asyncio.wait({process.exited for process in helpers}, timeout=HELPERS_S)


def _standing(inherited: Inherited, disk: Disk) -> Standing | None:
    """Return what the journal says, if it is about what this supervisor holds; else None."""
    own = {name for name in inherited.kept if name.startswith(prefixes.OWN)} - {IDENTITIES}
    if not own:
        return None
    standing = read_journal(paths.journal_file(), disk)
    if standing is None or f"{prefixes.OWN}{standing.token}" not in own:
        raise SkerryError(
            "the journal does not describe what runs here, so all of it is stopped",
            fix="start the system again",
        )
    return standing


async def _record(trail: AuditLog, fields: Mapping[str, object], fresh: bool) -> None:
    """Write the first record; a node that goes on needs no leave, a fresh one does."""
    if fresh:
        await trail.append("up", fields)
        return
    try:
        await trail.append("restarted", fields)
    except Denied:
        trail.note("restarted", fields)


async def _keep_token(supervisor: SupervisorClient, token: str, lock: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        identities = {IDENTITIES: lock} if lock >= 0 else {}
        await supervisor.keep({f"{prefixes.OWN}{token}": null, **identities})
    except (SpawnFailed, SupervisorGone) as error:
        raise SupervisorError(f"the supervisor keeps nothing: {error}") from None
    finally:
        os.close(null)


def _first_record(
    setup: Setup, layers: Mapping[str, str], images: list[Mapping[str, object]]
) -> dict[str, object]:
    return {
        "system": setup.system.name,
        "code": code_digest(),
        "policy": setup.stack.digest,
        "modules": list(setup.stack.names),
        "layers": dict(layers),
        "images": images,
        "operators": {str(uid): str(label) for uid, label in setup.operators.items()},
    }
