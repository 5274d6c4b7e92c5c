"""One domain's use of an uplink: a network card's other end, three helpers, and the cut.

The rules it keeps: what a guest sends ends at passt, which runs where nothing leads anywhere; passt
connects to the gate, which asks the dialer, which alone has a way out and holds the allow-list.
When `cut` has returned the dialer is dead, its connections are reset, and no frame crosses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from skerry.deaths import DEATHS, kill
from skerry.device.helper import Helper, Process, Program, Start, Together
from skerry.device.uplink import dialer, gate, netns, words
from skerry.device.uplink.allow import is_address, split
from skerry.device.uplink.denials import Denials, Note
from skerry.device.uplink.filters import DIALER, GATE, PASST
from skerry.errors import LayerMissing, SupervisorError
from skerry.jail.confinement import Limits
from skerry.jail.errors import JailError
from skerry.jail.root import build
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Side
from skerry.system.model import ResourceSpec
from skerry.system.resources import MAX_RESOLVERS

HELPERS = 3
"""Processes that serve one use: passt, the gate and the dialer. One that ends is the use's end."""

LIMITS = Limits(memory=128 << 20, pids=8)
"""What one helper of an uplink may use: bytes of memory, processes and threads."""

NAMESPACE_S = 10.0
"""How long the namespace of a use may take to be made; then the use is refused."""

BINARY = Path("/usr/bin/passt")
MTU = 65520
"""The largest packet that the guest is told to send, in bytes: one frame of the network card."""

_FRAMES, _CONTROL = 3, 4
_CHUNK = 64 << 10
_EXE = "/proc/self/exe"
_RESOLV_CONF = Path("/etc/resolv.conf")
GATEWAY_MAC = "52:54:00:00:02:01"
"""The hardware address of the gateway, as the guest sees it."""


class Pairs(Protocol):
    """Makes connected streams that can carry no descriptors (law 1): `channel.stream`."""

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Make two ends. Raises `Denied`; then nothing was made."""

    def close(self) -> None:
        """Let go of what makes them."""


Command = Callable[[str], list[str]]
"""Returns the command that runs `main()` of a module of this package as a helper."""


class Uplink:
    """One use. The twins are the card's end of the frames and the reports of the helpers."""

    def __init__(self, maker: Uplinks, source: str) -> None:
        """Make what is between. Raises `Denied`, `OSError`; then nothing was made."""
        self._maker, self._source = maker, source
        self._helpers: list[Helper] = []
        self._denials: Denials | None = None
        ours, self._far = maker.pairs.pair()
        self._reports = -1
        self._ends: dict[Side, int] = {"source": ours.detach()}
        self._twins: dict[Side, int] = {}
        try:
            self._twins["source"] = os.dup(self._ends["source"])
            self._twins["sink"], self._reports = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            self.cut()
            raise

    @classmethod
    def adopt(cls, maker: Uplinks, twins: Mapping[Side, int], helper: Helper | None) -> Uplink:
        """Make the use of what was handed over; see `device.resource.Uses.adopt`."""
        use = cls.__new__(cls)
        use._maker, use._source, use._reports = maker, "", -1
        use._far = socket.socket()  # of nothing
        use._far.close()
        use._ends, use._twins, use._denials = {}, dict(twins), None
        use._helpers = [helper] if helper is not None else []
        return use

    @property
    def ends(self) -> Mapping[Side, int]:
        """The descriptor for the machine; empty once handed over or cut."""
        return self._ends

    @property
    def bells(self) -> Mapping[Side, int]:
        """None."""
        return {}

    @property
    def twins(self) -> Mapping[Side, int]:
        """The descriptors that the cut works on; empty after it."""
        return self._twins

    @property
    def uid(self) -> int:
        """The highest host uid of its helpers, 0 where they have none of their own."""
        return max((helper.uid for helper in self._helpers), default=0)

    def is_whole(self) -> bool:
        """Say whether all its helpers run."""
        running = [process for process in self._processes() if not process.exited.done()]
        return len(running) == HELPERS and self._twins.keys() == {"source", "sink"}

    def _processes(self) -> list[Process]:
        found: list[Process] = []
        for process, _ in self._helpers:
            found += process.processes if isinstance(process, Together) else [process]
        return found

    def known_as(self, channel: int, source: str) -> None:
        """Record from now on what is refused, as of this channel and domain."""
        if "sink" in self._twins:
            about = {"channel": channel, "domain": source, "resource": self._maker.name}
            self._denials = Denials(self._twins["sink"], self._maker.note, about)

    async def open(self, channel: int) -> None:
        """Start the helpers. Raises `Denied` or `SupervisorError`; then none is left."""
        with contextlib.ExitStack() as stack:
            # A cut closes the use's own meanwhile; their numbers may be others' then.
            frames, reports = map(os.dup, (self._far.fileno(), self._reports))
            stack.callback(os.close, frames)
            stack.callback(os.close, reports)
            helpers: list[Helper] = []
            try:
                await self._maker.start_all(channel, frames, reports, helpers)
            except BaseException:
                _end(helpers)
                raise
        if not self._twins:
            _end(helpers)
            return
        self._helpers = helpers
        self._close_far()
        self.known_as(channel, self._source)

    def handed_over(self) -> None:
        """Close our copy of the end: the machine has its own. Idempotent."""
        while self._ends:
            os.close(self._ends.popitem()[1])

    def cut(self) -> int:
        """Kill the helpers, end the frames, close everything; return the bytes taken.

        Asks nobody and never raises.
        """
        if self._denials is not None:
            self._denials.close()
            self._denials = None
        self.handed_over()
        self._close_far()
        twins, self._twins = self._twins, {}
        processes, self._helpers = self._processes(), []
        dying = kill(processes)
        taken = _end_frames(twins["source"]) if "source" in twins else 0
        if processes:
            what = f"the helpers of the uplink {self._maker.name}"
            DEATHS.wait(what, dying, [twins["sink"]] if "sink" in twins else [])
        for twin in twins.values():
            os.close(twin)
        return taken

    def _close_far(self) -> None:
        self._far.close()
        if self._reports >= 0:
            os.close(self._reports)
            self._reports = -1


class Uplinks:
    """The maker of the uses of one uplink. Implements `device.resource.Uses`."""

    def __init__(
        self,
        spec: ResourceSpec,
        start: Start,
        pairs: Pairs,
        command: Command,
        roots: Callable[[], Path],
    ) -> None:
        """`roots` gives the directory of the jails' roots."""
        self.name, self.pairs = spec.name, pairs
        self.note: Note = lambda event, fields: None
        """Records what is refused; the trail's, once the monitor is met."""
        self._spec, self._start, self._command, self._roots = spec, start, command, roots
        self._ports = sorted({split(destination)[1] for destination in spec.allow})

    def mint(
        self, one_way: bool, overflow: str = "block", *, size: int = 0, source: str = ""
    ) -> Uplink:
        """Make a use by the domain `source`. Raises `Denied`; then nothing was made."""
        try:
            return Uplink(self, source)
        except OSError as error:
            raise SupervisorError(f"no uplink could be made: {error.strerror}") from error

    def adopt(self, twins: Mapping[Side, int], helper: Helper | None, source: str) -> Uplink:
        """Take over a use that was handed over; see `device.resource.Uses.adopt`."""
        return Uplink.adopt(self, twins, helper)

    def meet(self, monitor: Monitor) -> None:
        """Record in its trail from now on."""
        self.note = monitor.mediator.audit.note

    def close(self) -> None:
        """Let go of what makes the pairs. Uses that were minted live on."""
        self.pairs.close()

    async def start_all(
        self, channel: int, frames: int, reports: int, helpers: list[Helper]
    ) -> None:
        """Start the three helpers of a channel, each entered into `helpers` as it runs.

        Raises `Denied` or `SupervisorError`; what is in `helpers` then is the caller's to end.
        """
        with contextlib.ExitStack() as stack:
            control, theirs = map(stack.enter_context, socket.socketpair())
            given = {_FRAMES: frames, _CONTROL: theirs.fileno()}
            helpers.append(await self._start(channel, await self._passt(given)))
            theirs.close()
            sockets = await _receive(control, netns.FIXED + len(self._ports))
            for descriptor in sockets:
                stack.callback(os.close, descriptor)
            one, other = map(stack.enter_context, socket.socketpair(type=socket.SOCK_SEQPACKET))
            fds = {gate.DIALER: one.fileno(), gate.REPORTS: reports}
            fds |= dict(enumerate(sockets, gate.RESOLVER))
            argv = [*self._command(gate.__name__), str(len(self._ports))]
            helpers.append(await self._start(channel, Program(argv, fds, GATE, LIMITS)))
            fds = {dialer.GATE: other.fileno(), dialer.REPORTS: reports}
            helpers.append(await self._start(channel, self._dialer(fds)))

    def _dialer(self, fds: Mapping[int, int]) -> Program:
        resolvers = self._spec.resolvers or host_resolvers()
        orders = dialer.Orders(self._spec.allow, tuple(resolvers), self._spec.rate)
        argv = [*self._command(dialer.__name__), msgspec.json.encode(orders).decode()]
        # It is the way out: the host's network is what it is for, and Landlock would forbid TCP.
        return Program(argv, fds, DIALER, LIMITS, without=frozenset({"network", "landlock"}))

    async def _passt(self, fds: Mapping[int, int]) -> Program:
        try:
            program = _program()
            root = await asyncio.to_thread(_root, self._roots(), program)
        except JailError as error:
            raise LayerMissing(error.message, fix="install the package passt") from None
        ports = ",".join(map(str, self._ports))
        first = (netns.__file__, str(_CONTROL), words.GATEWAY, ports)
        # Its network is the namespace of `first`; it makes a jail of its own inside ours, and
        # connects to the gate, which Landlock would forbid.
        without = frozenset({"network", "user-namespace", "landlock"})
        return Program(
            [str(program), *passt_options(_FRAMES)],
            fds,
            PASST,
            LIMITS,
            root,
            without=without,
            first=first,
        )


def passt_options(frames: int) -> list[str]:
    """Return the options of a passt that speaks frames on a descriptor, IPv4 and outward only."""
    network = ("-i", "lo", "-a", words.GUEST, "-n", str(words.PREFIX), "-g", words.GATEWAY)
    names = ("-D", words.GATEWAY, "--no-dhcp-search", "--no-map-gw", "-M", GATEWAY_MAC)
    nothing = ("--no-icmp", "--no-ndp", "--no-ra", "--no-dhcpv6", "-t", "none", "-u", "none")
    process = ("-f", "-e", "-q", "-4", "-m", str(MTU), "--fd", str(frames))
    return [*process, *network, *names, *nothing]


def host_resolvers() -> list[str]:
    """Return the host's own name servers of IPv4, the first three, as `ADDRESS:PORT`."""
    try:
        lines = _RESOLV_CONF.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words_of = [line.split() for line in lines]
    found = [w[1] for w in words_of if len(w) > 1 and w[0] == "nameserver" and is_address(w[1])]
    return [f"{address}:{netns.DNS_PORT}" for address in found[:MAX_RESOLVERS]]


async def _receive(control: socket.socket, count: int) -> list[int]:
    """Take the sockets of a namespace that is being made. Raises `SupervisorError`."""
    control.setblocking(False)
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(control, ready.set)
    try:
        async with asyncio.timeout(NAMESPACE_S):
            await ready.wait()
    except TimeoutError:
        raise SupervisorError("an uplink's namespace was not made in time") from None
    finally:
        loop.remove_reader(control)
    said, descriptors, _, _ = socket.recv_fds(control, netns.MAX_REASON + 1, count)
    if len(descriptors) != count:
        for descriptor in descriptors:
            os.close(descriptor)
        why = said[1:].decode(errors="replace") or "its maker has ended"
        raise SupervisorError(
            f"an uplink's namespace could not be made: {why}",
            fix="the host must allow network namespaces (user namespaces for ordinary users)",
        )
    return descriptors


def _end(helpers: Sequence[Helper]) -> None:
    for helper in helpers:
        helper.process.kill()


def _end_frames(twin: int) -> int:
    """Shut both directions of the card's frames down, and take what waits for the machine."""
    taken = 0
    with socket.socket(fileno=os.dup(twin)) as sock, contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
        while got := len(sock.recv(_CHUNK, socket.MSG_DONTWAIT)):
            taken += got
    return taken


def _program() -> Path:
    """Return the passt for this processor: Debian has one that is faster where it can run."""
    plain = BINARY.resolve()
    faster = plain.with_name(f"{plain.name}.avx2")
    can = " avx2 " in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return faster if can and faster.exists() else plain


def _root(directory: Path, program: Path) -> Path:
    """Return passt's root: itself, where it makes its own jail, and the link by which it sees that
    it is the right one."""
    points = ("/tmp/", f"{Path(_EXE).parent}/")
    return build(directory, "passt", [program], (), points, ((_EXE, str(program)),))
