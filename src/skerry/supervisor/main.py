"""The supervisor: parent of the node and of every jail; one thread, one poll loop.

The rules: whatever it forked dies with it; an exit status is kept until the node has it; a send
never blocks the loop; a malformed message from the node stops everything.

    python3 -I -m skerry.supervisor.main -- NODE ARG...  start a node; $SKERRY_SUPERVISOR is its fd
    python3 -I -m skerry.supervisor.main --peer FD       serve a node that is already there
"""

from __future__ import annotations

import contextlib
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

MAX_CHILDREN = 1024
"""Living children; a spawn beyond it is refused. Bounds the exit events that may wait, too."""
MAX_KEPT = 2048
"""Descriptors in the store; a keep beyond it is refused."""
MAX_WAITING = 2 * MAX_CHILDREN
"""Messages waiting for the node; beyond it nothing more is read from it."""
STOP_SECONDS = 10.0
"""How long the node may take to stop after SIGTERM before everything is killed."""
NODE_FD = 3
"""The number of the supervisor's socket in the node."""
EXIT_NODE_FAILED = 70
EXIT_PEER_FAULT = 71


@dataclass
class Child:
    """One process that was forked; `answered` once its start was reported."""

    request: int
    pid: int
    pidfd: int
    errors: int
    answered: bool = False


@dataclass
class Supervisor:
    """The state of the loop. `peer` is the socket to the node."""

    peer: socket.socket
    node: Child | None = None
    children: dict[int, Child] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    waiting: deque[tuple[bytes, list[int]]] = field(default_factory=deque)
    watched: dict[int, Callable[[], None]] = field(default_factory=dict)
    poll: select.poll = field(default_factory=select.poll)
    exit_code: int | None = None
    unheard: bool = False
    deadline: float | None = None

    def run(self) -> int:
        """Serve until the node ends or a signal asks to stop; leave no child behind."""
        self.watch(self.peer.fileno(), self._from_node)
        try:
            while self.exit_code is None:
                ready = [(fd, self.watched[fd]) for fd, _ in self.poll.poll(self._timeout())]
                for fd, then in ready:
                    # A number may have been closed and given anew since it was polled.
                    if self.watched.get(fd) is then:
                        then()
                if self.deadline is not None and time.monotonic() > self.deadline:
                    self._end(EXIT_NODE_FAILED)
                self._flush()
        finally:
            self.kill_all()
        return self.exit_code

    def start_node(self, argv: Sequence[str], socket_end: socket.socket) -> None:
        """Start the node with our standard streams, our environment and its socket's end."""
        env = {**os.environ, "SKERRY_SUPERVISOR": str(NODE_FD)}
        fds = {0: 0, 1: 1, 2: 2, NODE_FD: socket_end.fileno()}
        # The node stays in the session of the terminal: it is the user's foreground program.
        self.node = self._fork(0, forking.Order(argv, fds, env, session=False))
        socket_end.close()

    def stop(self) -> None:
        """Ask the node to stop; asked again, or without a node, end at once."""
        if self.node is None or self.deadline is not None:
            self._end(0)
        else:
            self.deadline = time.monotonic() + STOP_SECONDS
            signal.pidfd_send_signal(self.node.pidfd, signal.SIGTERM)

    def kill_all(self) -> None:
        """Kill and reap every child, then the node."""
        living = [*self.children.values(), *([self.node] if self.node else [])]
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
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - time.monotonic()) * 1000 + 1

    def watch(self, fd: int, then: Callable[[], None]) -> None:
        """Call `then` whenever the descriptor is readable or at its end."""
        self.watched[fd] = then
        self.poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        del self.watched[fd]
        self.poll.unregister(fd)
        os.close(fd)

    def _fork(self, request: int, order: forking.Order) -> Child:
        child = Child(request, *forking.spawn(order))
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
                sys.stderr.write(f"skerry: the node did not start: {words}\n")
                self._end(EXIT_NODE_FAILED)
            self._forget(child)
        elif child is not self.node:
            started = {"op": "spawned", "id": child.request, "pid": child.pid}
            self._say(started, [os.dup(child.pidfd)])

    def _ended(self, child: Child) -> None:
        """Report an end, after the start; the node's own end is the end of everything."""
        if not child.answered:
            self._started(child)
        if child.pidfd not in self.watched:
            return
        is_node = child is self.node
        status = self._forget(child)
        if not is_node:
            self._say({"op": "exited", "id": child.request, "pid": child.pid, "status": status})
            return
        if status and self.deadline is None:
            sys.stderr.write(f"skerry: the node ended with {status}; everything is stopped\n")
        self._end(status if 0 <= status < 128 else EXIT_NODE_FAILED)

    def _forget(self, child: Child) -> int:
        _, status = os.waitpid(child.pid, 0)
        self.children.pop(child.pid, None)
        if child is self.node:
            self.node = None
        self._unwatch(child.pidfd)
        return os.waitstatus_to_exitcode(status)

    def _say(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.waiting.append((wire.encode(message), list(fds)))

    def _flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        if self.unheard:
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.waiting:
                wire.send(self.peer, *self.waiting[0])
                wire.close_all(self.waiting.popleft()[1])
        wanted = select.POLLOUT if self.waiting else 0
        if len(self.waiting) < MAX_WAITING:
            wanted |= select.POLLIN
        self.poll.modify(self.peer.fileno(), wanted)

    def _from_node(self) -> None:
        try:
            message, fds = wire.receive(self.peer)
        except BlockingIOError:
            return
        except wire.Closed:
            # A node that was started here is waited for by its own end, which has a status.
            if self.node is None:
                self._end(0)
            else:
                self.unheard = True
                self.poll.unregister(self.peer.fileno())
            return
        except (wire.WireFault, OSError) as error:
            sys.stderr.write(f"skerry: supervisor: {error}; everything is stopped\n")
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
        name = message["name"]
        if operation == "keep":
            if name in self.kept or len(self.kept) >= MAX_KEPT or len(fds) != 1:
                raise ValueError(f"cannot keep {name}: it is there, or {MAX_KEPT} are, or no fd")
            self.kept[name] = fds.pop()
        elif operation == "drop":
            if name in self.kept:
                os.close(self.kept.pop(name))
        else:
            raise ValueError(f"unknown operation {operation}")
        self._say({"op": "done", "id": request})

    def _spawn(self, request: int, message: dict[str, Any], fds: list[int]) -> None:
        numbers = [int(number) for number in message["fds"]]
        if len(self.children) >= MAX_CHILDREN:
            raise ValueError(f"{MAX_CHILDREN} processes are running; that is the limit")
        if len(set(numbers)) != len(fds) or len(numbers) != len(fds):
            raise ValueError("one descriptor for each number")
        given = dict(zip(numbers, fds, strict=True))
        argv = [str(word) for word in message["argv"]]
        order = forking.Order(argv, given, message["env"], message["cgroup"])
        child = self._fork(request, order)
        self.children[child.pid] = child


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
            ours, theirs = wire.pair()
            supervisor = Supervisor(ours)
        case _:
            sys.stderr.write("usage: skerry.supervisor.main -- NODE ARG... | --peer FD\n")
            return 2
    wake, woken = socket.socketpair()
    _stop_on_signals(supervisor, wake, woken)
    if arguments[0] == "--":
        supervisor.start_node(arguments[1:], theirs)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
