"""The other side of the comparisons: the same QEMU, started by hand and without a jail.

Binary, board, kernel and arguments are those of `machine.qemu.command`, but for `-S`: by hand
nobody stops the processors first. A bare machine never outlives the run, also when that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from skerry.errors import SkerryError
from skerry.machine.agent import Agent
from skerry.machine.qemu.command import AGENT_FD, CONSOLE_FD, QMP_FD, SOCKET_FDS, QemuSpec, command
from skerry.machine.qemu.nics import mac
from skerry.machine.qemu.template import Template, ram_arguments

READY = b"skerry: ready"
"""What a guest prints on its console when its init has started the agent."""

BOOT_S = 60.0


class BareQemu:
    """One QEMU, running from its making on; `close` ends it."""

    def __init__(
        self,
        spec: QemuSpec,
        ports: Mapping[str, socket.socket] = {},
        cards: Mapping[str, socket.socket] = {},
        tpm: socket.socket | None = None,
        template: Template | None = None,
    ) -> None:
        """Start it; `ports` and `cards` are its streams and links by name, `tpm` the control
        channel of a swtpm; their sockets are taken over. With a `template`, `restore` follows."""
        pairs = {fd: socket.socketpair() for fd in SOCKET_FDS}
        far = {fd: pair[1] for fd, pair in pairs.items()}
        self._near = {fd: pair[0] for fd, pair in pairs.items()}
        self._agent: Agent | None = None
        argv = [word for word in command(spec, str) if word != "-S"]
        argv = [re.sub(r"(?<=,fd=)\d+$", lambda m: str(far[int(m[0])].fileno()), w) for w in argv]
        for name, sock in ports.items():
            argv += ["-chardev", f"socket,id={name},fd={sock.fileno()}"]
            argv += ["-device", f"virtserialport,bus=ports.0,chardev={name},name={name}"]
        for name, sock in cards.items():
            argv += ["-netdev", f"socket,id={name},fd={sock.fileno()}"]
            card = f"virtio-net-pci,netdev={name},mac={mac(spec.name, name)},romfile="
            argv += ["-device", card]
        if tpm is not None:
            argv += ["-chardev", f"socket,id=tpm,fd={tpm.fileno()}"]
            argv += ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0"]
        inherited = [*far.values(), *ports.values(), *cards.values()]
        inherited += [tpm] if tpm is not None else []
        fds = [sock.fileno() for sock in inherited]
        if template is not None:
            fds.append(template.own_open())
            argv += [*ram_arguments(spec.memory, fds[-1], share=False), "-incoming", "defer"]
        # Ends the machine should this process be killed: its standard input then ends.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", "read pid; read end; kill -KILL $pid"], stdin=subprocess.PIPE
        )
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=fds)
        if template is not None:
            os.close(fds[-1])
        assert self._guard.stdin is not None
        self._guard.stdin.write(b"%d\n" % self._process.pid)
        self._guard.stdin.flush()
        for sock in inherited:
            sock.close()

    def restore(self, state: bytes) -> None:
        """Go on where a template was saved. Raises `SkerryError` with QEMU's words."""
        file = os.memfd_create("state")
        os.write(file, state)
        os.lseek(file, 0, os.SEEK_SET)
        with self._near[QMP_FD].makefile("rb") as answers:
            self._order(answers, "qmp_capabilities", {})
            shared = {"capability": "x-ignore-shared", "state": True}
            self._order(answers, "migrate-set-capabilities", {"capabilities": [shared]})
            self._order(answers, "getfd", {"fdname": "state"}, file)
            os.close(file)
            self._order(answers, "migrate-incoming", {"uri": "fd:state"})
            while self._order(answers, "query-status", {})["status"] == "inmigrate":
                time.sleep(0.001)
            self._order(answers, "cont", {})

    async def answered(self) -> None:
        """Wait until the agent in the guest answers."""
        self._agent = Agent(self._near[AGENT_FD])
        await self._agent.ready(BOOT_S)

    def plug_pipe(self, name: str, end: int) -> None:
        """Add a port on an end of a pipe, which is taken over: what can't be said at the start.

        To be called once. Raises `SkerryError` with QEMU's words.
        """
        reads = fcntl.fcntl(end, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        null = os.open(os.devnull, os.O_WRONLY)
        with self._near[QMP_FD].makefile("rb") as answers:
            self._order(answers, "qmp_capabilities", {})
            for number, descriptor in enumerate((end, null), 1):
                self._order(answers, "add-fd", {"fdset-id": number}, descriptor)
                os.close(descriptor)
            files = {"in": "/dev/fdset/1", "out": "/dev/fdset/2"}
            data = files if reads else {"out": "/dev/fdset/1"}
            backend = {"type": "file", "data": {**data, "append": True}}
            self._order(answers, "chardev-add", {"id": name, "backend": backend})
            for number in (1, 2):
                self._order(answers, "remove-fd", {"fdset-id": number})
            port = {"driver": "virtserialport", "bus": "ports.0", "chardev": name, "name": name}
            self._order(answers, "device_add", {**port, "id": f"{name}-port"})

    def plug_memory(self, slot: int, memory: int) -> None:
        """Add a shared memory, by a descriptor that stays the caller's, in a slot of its bus.

        To be called once. Raises `SkerryError` with QEMU's words.
        """
        with self._near[QMP_FD].makefile("rb") as answers:
            self._order(answers, "qmp_capabilities", {})
            given = self._order(answers, "add-fd", {"fdset-id": 1}, memory)
            path = f"/proc/self/fd/{given['fd']}"
            size = os.fstat(memory).st_size
            file = {"qom-type": "memory-backend-file", "mem-path": path, "size": size}
            self._order(answers, "object-add", {**file, "id": "memory", "share": True})
            device = {"driver": "ivshmem-plain", "memdev": "memory", "addr": f"{slot:#x}"}
            self._order(answers, "device_add", {**device, "id": "window"})

    def plug_disk(self, name: str, end: int) -> None:
        """Add a disk over a connected NBD socket, which stays the caller's.

        To be called once. Raises `SkerryError` with QEMU's words.
        """
        with self._near[QMP_FD].makefile("rb") as answers:
            self._order(answers, "qmp_capabilities", {})
            self._order(answers, "getfd", {"fdname": name}, end)
            server = {"type": "fd", "str": name}
            node = {"driver": "nbd", "node-name": name, "export": "disk", "discard": "unmap"}
            self._order(answers, "blockdev-add", {**node, "server": server})
            device = {"driver": "virtio-blk-pci", "drive": name, "serial": name}
            self._order(answers, "device_add", {**device, "id": f"{name}-device"})

    def _order(
        self, answers: BinaryIO, command: str, arguments: Mapping[str, object], descriptor: int = -1
    ) -> Any:
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        fds = [descriptor] if descriptor >= 0 else []
        socket.send_fds(self._near[QMP_FD], [line], fds)
        while (answer := json.loads(answers.readline())).get("return") is None:
            if "error" in answer:
                raise SkerryError(f"the bare machine refused {command}: {answer['error']}")
        return answer["return"]

    def wait_ready(self) -> None:
        """Wait for the guest's first line. Raises `SkerryError` if it does not come."""
        console = self._near[CONSOLE_FD]
        console.settimeout(BOOT_S)
        said = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while READY not in said:
                piece = console.recv(4096)
                if not piece:
                    break
                said += piece
        if READY not in said:
            raise SkerryError(f"the bare machine did not boot: {said[-200:]!r}")

    async def agent(self) -> Agent:
        """Return the agent in the guest, which answers."""
        if self._agent is None:
            await asyncio.to_thread(self.wait_ready)
            self._agent = Agent(self._near[AGENT_FD])
            await self._agent.ready(BOOT_S)
        return self._agent

    def close(self) -> None:
        """End the machine and wait until it is gone."""
        self._guard.kill()
        self._process.kill()
        for process in (self._guard, self._process):
            process.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        for sock in self._near.values():
            sock.close()
