"""The supervisor: parent of the node and of every jail; one thread, one poll loop.

The rules: whatever it forked dies with it; a node that died is started again and inherits what is
kept, and nodes that keep dying are the end of everything; an exit status is kept until the node
drops it; a send never blocks the loop; a malformed message from the node stops everything.

    python3 -I -m skerry.supervisor.main -- NODE ARG...  start a node; $SKERRY_SUPERVISOR is its fd
    python3 -I -m skerry.supervisor.main --peer FD       serve a node that is already there
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from skerry.supervisor import spawn as forking
from skerry.supervisor import wire

MAX_CHILDREN = 2048
"""Children, ended ones that were not dropped too; a spawn beyond it is refused."""
MAX_KEPT = 40_000
"""Descriptors in the store; a keep beyond it is refused."""
RESERVE = 600
"""Descriptors that stay free, for what a message brings and a hand-over takes; also a limit."""
MAX_NAME = 128
"""Longest name of a process or a descriptor, in characters."""
BATCH = 200
"""Things that one message hands over to a new node."""
MAX_WAITING = 2 * MAX_CHILDREN
"""Messages waiting for the node; beyond it nothing more is read from it."""
STOP_SECONDS = 10.0
"""How long the node may take to stop after SIGTERM before everything is killed."""
NODE_FD = 3
"""The number of the supervisor's socket in the node."""
EXIT_NODE_FAILED = 70
EXIT_PEER_FAULT = 71
FINAL = (0, 1)
"""Exit codes by which a node says that there is nothing to go on with."""
EXIT_RESTART = 75
"""The node's exit code that asks for a new node at once."""
HEALTHY_SECONDS = 10.0
"""A node that lived so long has not failed in a row with the one before it."""
MAX_DEATHS = 5
"""Nodes that may fail in a row; one more, and everything is stopped."""
PAUSE_SECONDS = 0.02
"""The pause before a new node; it doubles with each failure in a row."""


@dataclass
class Child:
    """One process that was forked; `answered` once its start was reported, `status` at its end.

    One that was started with descriptors to keep is `lasting`: its status waits to be dropped.
    """

    request: int
    name: str
    pid: int
    pidfd: int
    errors: int
    answered: bool = False
    lasting: bool = False
    status: int | None = None


@dataclass
class Supervisor:
    """The state of the loop. `peer` is the socket to the node that `argv` starts."""

    peer: socket.socket
    argv: Sequence[str] = ()
    node: Child | None = None
    children: dict[int, Child] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    waiting: deque[tuple[bytes, list[int]]] = field(default_factory=deque)
    heritage: deque[str | Child] = field(default_factory=deque)
    heir: int = 0
    watched: dict[int, Callable[[], None]] = field(default_factory=dict)
    poll: select.poll = field(default_factory=select.poll)
    exit_code: int | None = None
    unheard: bool = False
    deadline: float | None = None
    again: float | None = None
    began: float = 0.0
    deaths: int = 0
    descriptors: int = field(
        default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVE
    )

    def run(self) -> int:
        """Serve until the node ends or a signal asks to stop; leave no child behind."""
        if self.argv:
            self._start_node()
        else:
            self.watch(self.peer.fileno(), self._from_node)
        try:
            while self.exit_code is None:
                ready = [(fd, self.watched[fd]) for fd, _ in self.poll.poll(self._timeout())]
                for fd, then in ready:
                    # A number may have been closed and given anew since it was polled.
                    if self.watched.get(fd) is then:
                        then()
                now = time.monotonic()
                if self.deadline is not None and now > self.deadline:
                    self._end(EXIT_NODE_FAILED)
                elif self.again is not None and now >= self.again:
                    self._start_node()
                self._flush()
        finally:
            self.kill_all()
        return self.exit_code

    def _start_node(self) -> None:
        """Start a node with our standard streams, our environment and a new socket to us."""
        self.again = None
        self._hang_up()
        self.peer, theirs = wire.pair()
        self.unheard = False
        self.watch(self.peer.fileno(), self._from_node)
        env = {**os.environ, "SKERRY_SUPERVISOR": str(NODE_FD)}
        fds = {0: 0, 1: 1, 2: 2, NODE_FD: theirs.fileno()}
        # The node stays in the session of the terminal: it is the user's foreground program.
        self.node = self._fork(0, "", forking.Order(self.argv, fds, env, session=False))
        self.began = time.monotonic()
        theirs.close()

    def _hang_up(self) -> None:
        """Close the socket to a node that has ended, with all that waited for it."""
        if self.peer.fileno() in self.watched:
            self._unwatch(self.peer.fileno())
            self.peer.detach()
        self.unheard = True
        self.heritage.clear()
        while self.waiting:
            wire.close_all(self.waiting.popleft()[1])

    def stop(self) -> None:
        """Ask the node to stop; asked again, or without a node, end at once."""
        if self.node is None or self.deadline is not None:
            self._end(0)
        else:
            self.deadline = time.monotonic() + STOP_SECONDS
            signal.pidfd_send_signal(self.node.pidfd, signal.SIGTERM)

    def kill_all(self) -> None:
        """Kill and reap every child, then the node."""
        living = [child for child in self.children.values() if child.status is None]
        living += [self.node] if self.node else []
        for child in living:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        for child in living:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)

    def _end(self, code: int) -> None:
        if self.exit_code is None:
            self.exit_code = code

    def _timeout(self) -> float | None:
        times = [moment for moment in (self.deadline, self.again) if moment is not None]
        if not times:
            return None
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1

    def watch(self, fd: int, then: Callable[[], None]) -> None:
        """Call `then` whenever the descriptor is readable or at its end."""
        self.watched[fd] = then
        self.poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        del self.watched[fd]
        with contextlib.suppress(KeyError):  # nothing more was wanted of it
            self.poll.unregister(fd)
        os.close(fd)

    def _fork(self, request: int, name: str, order: forking.Order) -> Child:
        child = Child(request, name, *forking.spawn(order))
        self.watch(child.errors, lambda: self._started(child))
        self.watch(child.pidfd, lambda: self._ended(child))
        return child

    def _started(self, child: Child) -> None:
        """Read the end of the error pipe: the program runs, or why it does not."""
        untrusted = os.read(child.errors, 4096)
        self._unwatch(child.errors)
        child.answered = True
        if untrusted:
            number, _, words = untrusted.decode(errors="replace").partition(" ")
            self._say({"op": "failed", "id": child.request, "errno": int(number), "error": words})
            if child is self.node:
                _log(f"the node did not start: {words}")
                self._end(EXIT_NODE_FAILED)
            self._reap(child)
            self._forget(child)
        elif child is not self.node:
            self._tell_start(child)

    def _tell_start(self, child: Child) -> None:
        """Hand the node a pidfd; a process that it could not kill is ended."""
        if pidfds := _copy(child.pidfd):
            self._say({"op": "spawned", "id": child.request, "pid": child.pid}, pidfds)
        else:
            self._abandon(child)
            error = "no descriptor is left"
            self._say({"op": "failed", "id": child.request, "errno": errno.EMFILE, "error": error})

    def _abandon(self, child: Child) -> None:
        """End a process that the node does not hear of, and keep nothing of it."""
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        child.lasting = False

    def _ended(self, child: Child) -> None:
        """Report an end, after the start; a node that did not end as asked is started again."""
        if not child.answered:
            self._started(child)
        if child.pidfd not in self.watched:
            return
        status = self._reap(child)
        if child is self.node:
            self._forget(child)
            self._node_ended(status)
        else:
            self._say({"op": "exited", "pid": child.pid, "status": status})
            if not child.lasting:
                self._forget(child)

    def _node_ended(self, status: int) -> None:
        self._hang_up()
        if time.monotonic() - self.began > HEALTHY_SECONDS or status == EXIT_RESTART:
            self.deaths = 0
        self.deaths += status != EXIT_RESTART
        if status in FINAL or self.deadline is not None or self.deaths > MAX_DEATHS:
            if status and self.deadline is None:
                _log(f"the node ended with {status}; everything is stopped")
            self._end(status if 0 <= status < 128 else EXIT_NODE_FAILED)
        else:
            _log(f"the node ended with {status}; another one is started")
            self.again = time.monotonic() + PAUSE_SECONDS * 2**self.deaths

    def _reap(self, child: Child) -> int:
        """Take the status of an ended child and stop watching it; its record stays."""
        _, status = os.waitpid(child.pid, 0)
        self._unwatch(child.pidfd)
        child.pidfd = -1
        child.status = os.waitstatus_to_exitcode(status)
        return child.status

    def _forget(self, child: Child) -> None:
        self.children.pop(child.pid, None)
        if child is self.node:
            self.node = None

    def _say(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if self.unheard:
            wire.close_all(fds)
        else:
            self.waiting.append((wire.encode(message), list(fds)))

    def _flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        if self.unheard:
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.waiting or self.heritage:
                if not self.waiting:
                    self._hand_over()
                wire.send(self.peer, *self.waiting[0])
                wire.close_all(self.waiting.popleft()[1])
        wanted = select.POLLOUT if self.waiting else 0
        if len(self.waiting) < MAX_WAITING:
            wanted |= select.POLLIN
        self.poll.modify(self.peer.fileno(), wanted)

    def _hand_over(self) -> None:
        """Say the next of what the node inherits.

        What was dropped meanwhile is left out, and what can't be copied: it counts as lost.
        """
        kept: list[str] = []
        processes: list[tuple[str, int, int | None]] = []
        fds: list[int] = []
        pidfds: list[int] = []
        for _ in range(min(BATCH, len(self.heritage))):
            thing = self.heritage.popleft()
            if isinstance(thing, str) and thing in self.kept:
                copies = _copy(self.kept[thing])
                fds += copies
                kept += [thing] * len(copies)
            elif isinstance(thing, Child) and thing.pid in self.children:
                copies = _copy(thing.pidfd) if thing.status is None else []
                pidfds += copies
                if copies or thing.status is not None:
                    processes.append((thing.name, thing.pid, thing.status))
                else:
                    self._abandon(thing)
        message = {"op": "inherited", "id": self.heir, "last": not self.heritage}
        self._say(message | {"kept": kept, "processes": processes}, fds + pidfds)

    def _from_node(self) -> None:
        try:
            message, fds = wire.receive(self.peer)
        except (BlockingIOError, ConnectionResetError):
            return  # reset by a node that died with answers unread: what it said comes next
        except wire.Closed:
            # A node that was started here is waited for by its own end, which has a status.
            if self.node is None:
                self._end(0)
            else:
                self.unheard = True
                self.poll.unregister(self.peer.fileno())
            return
        except (wire.WireFault, OSError) as error:
            _log(f"supervisor: {error}; everything is stopped")
            self._end(EXIT_PEER_FAULT)
            return
        try:
            self._obey(message, fds)
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            number = getattr(error, "errno", None) or 0
            refusal = {"op": "failed", "id": message.get("id", 0), "errno": number}
            self._say({**refusal, "error": str(error)[:1000]})
        finally:
            wire.close_all(fds)

    def _obey(self, message: dict[str, Any], fds: list[int]) -> None:
        """Carry out one request; `fds` is emptied of what is kept. Errors are told to the node."""
        request, operation = int(message["id"]), message["op"]
        if operation == "spawn":
            self._spawn(request, message, fds)
            return
        if operation == "inherit":
            self.heir = request
            # What has no name stands for the end, also where there is nothing else.
            self.heritage = deque([*self.children.values(), *self.kept, ""])
            return
        if operation == "keep":
            self._keep(message["names"], fds)
        elif operation == "drop":
            for name in message["names"]:
                if name in self.kept:
                    os.close(self.kept.pop(name))
            for child in [c for c in self.children.values() if c.name in message["names"]]:
                child.lasting = False
                if child.status is not None:
                    self._forget(child)
        else:
            raise ValueError(f"unknown operation {operation}")
        self._say({"op": "done", "id": request})

    def _keep(self, names: list[str], fds: list[int]) -> None:
        """Take over the descriptors, one for each name: all of them or none."""
        if len(set(names)) != len(fds) or len(names) != len(fds):
            raise ValueError("one descriptor for each name")
        if any(name in self.kept or not 0 < len(name) <= MAX_NAME for name in names):
            raise ValueError(f"a name of 1 to {MAX_NAME} characters is used once")
        if len(self.kept) + len(names) > min(MAX_KEPT, self.descriptors - 2 * len(self.children)):
            raise ValueError(f"{len(self.kept)} descriptors are kept; that is the limit")
        self.kept |= zip(names, fds, strict=True)
        fds.clear()

    def _spawn(self, request: int, message: dict[str, Any], fds: list[int]) -> None:
        numbers = [int(number) for number in message["fds"]]
        if len(self.children) >= MAX_CHILDREN:
            raise ValueError(f"{MAX_CHILDREN} processes are running; that is the limit")
        given, kept = fds[: len(numbers)], fds[len(numbers) :]
        if len(set(numbers)) != len(given) or len(numbers) != len(given):
            raise ValueError("one descriptor for each number")
        argv = [str(word) for word in message["argv"]]
        order = forking.Order(
            argv, dict(zip(numbers, given, strict=True)), message["env"], message["cgroup"]
        )
        self._keep(message["keep"], kept)
        del fds[len(numbers) :]
        try:
            child = self._fork(request, str(message["name"])[:MAX_NAME], order)
        except (ValueError, OSError):
            wire.close_all([self.kept.pop(name) for name in message["keep"]])
            raise
        child.lasting = bool(message["keep"])
        self.children[child.pid] = child


def _log(words: str) -> None:
    """Say something on standard error; a log that takes nothing ends nobody."""
    with contextlib.suppress(OSError):
        os.write(2, f"skerry: {words}\n".encode())


def _copy(fd: int) -> list[int]:
    """Return a copy to be sent, none where the host has no descriptor left."""
    try:
        return [os.dup(fd)]
    except OSError:
        return []


def _stop_on_signals(supervisor: Supervisor, wake: socket.socket, woken: socket.socket) -> None:
    """Turn SIGTERM and SIGINT into events of the loop."""
    wake.setblocking(False)
    woken.setblocking(False)

    def heard() -> None:
        wake.recv(64)
        supervisor.stop()

    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    supervisor.watch(wake.fileno(), heard)


def main(arguments: Sequence[str]) -> int:
    """Run the supervisor; return its exit code: the node's, 70 or 71."""
    forking.prctl(forking.PR_SET_DUMPABLE, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    match arguments:
        case ["--peer", number]:
            supervisor = Supervisor(socket.socket(fileno=int(number)))
            os.set_inheritable(int(number), False)
        case ["--", _, *_]:
            supervisor = Supervisor(socket.socket(), arguments[1:])
        case _:
            _log("usage: skerry.supervisor.main -- NODE ARG... | --peer FD")
            return 2
    wake, woken = socket.socketpair()
    _stop_on_signals(supervisor, wake, woken)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
