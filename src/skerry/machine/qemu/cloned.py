"""Two machines that are more than started: the source of a template, and a clone of one.

The rules they keep: a source has no label, no name and no channel, so that what is saved of it
holds no authority; a clone has its identity, its channels and fresh randomness only after it was
restored, and is a machine like any other from then on, jail, descriptors and end alike.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from skerry.errors import Denied, MachineError, StateError
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.launch import Launcher
from skerry.machine.qemu.machine import QemuMachine, Start
from skerry.machine.qemu.sockets import Pairs
from skerry.machine.qemu.template import (
    ASLEEP,
    Template,
    TemplateUnusable,
    make_ram,
    ram_arguments,
    restore,
    save,
    seal,
)

BOOT_S = 120.0
"""How long the source of a template may take to boot."""

SAYS_S = 10.0
"""How long the guest may take to say that it waits."""

_WAITS = "[ -e /run/skerry/asleep ] && [ -p /run/skerry/agent/wake ] || exit 1"
_COLLECTS = "timeout 5 head -c 1 /dev/random >/dev/null; exit 0"
WAITS = ("sh", "-c", f"{_WAITS}; {_COLLECTS}")
"""What a guest can run that will do nothing before it is told who it is. Its kernel then has its
source of random numbers ready, if it can in time: else each clone would, and take longer."""

OWN_INIT = ("rdinit=/init", "rdinit=/lib/skerry/selinux-init")
"""Words of a kernel's command line, of which one begins with a program of ours that waits."""

REST_S = 0.5
"""How long its guest may then come to rest: what it does before it is saved no clone has to do."""


class Source(QemuMachine):
    """Boots a guest that does not know who it is, to be saved. For one template."""

    def __init__(self, spec: QemuSpec, launcher: Launcher) -> None:
        """Describe it; `spec` is that of the domain whose clones are wanted."""
        cmdline = f"{spec.cmdline} {ASLEEP}"
        name = f"template-{secrets.token_hex(4)}"  # the supervisor may have several
        nobody = msgspec.structs.replace(spec, name=name, label="", cmdline=cmdline)
        super().__init__(nobody, launcher)
        self._size = spec.memory
        self._words = cmdline.split()
        self._ram = -1

    async def template(self) -> Template:
        """Boot it, save it, end it.

        Raises `MachineError`, `Denied`; then nothing of it is left. Cancelled, it is ended.
        """
        if not set(OWN_INIT) & set(self._words):
            self.kill()
            raise MachineError("its image has an init of its own, which does not wait")
        try:
            self._ram = make_ram(self._size)
        except OSError as error:
            self.kill()
            raise MachineError(f"no memory for a template: {error.strerror}") from error
        try:
            await self.prepare()
            await self.resume()
            await self.agent.ready(BOOT_S)
            if await self.agent.run(WAITS, output=lambda *_: None, timeout_s=SAYS_S):
                raise MachineError("its image is older than templates", fix="build it again")
            await asyncio.sleep(REST_S)
            # With the next line it takes note of what has ended, which no clone has to.
            await self.agent.ready(SAYS_S)
            await asyncio.sleep(REST_S)
            state = await save(self._qmp)
            self.kill()
            await asyncio.shield(self.exited)
            await seal(self._ram)
        except BaseException:
            self.kill()
            os.close(self._ram)
            if self.pid:
                await asyncio.shield(self.exited)
            raise
        return Template(self._ram, state)

    def _at_launch(self, spec: QemuSpec, first: int) -> tuple[list[str], Mapping[int, int]]:
        return ram_arguments(spec.memory, first, share=True), {first: self._ram}


Find = Callable[[], Coroutine[Any, Any, Template]]


class Clone(QemuMachine):
    """A machine that begins where a template was saved."""

    def __init__(
        self,
        spec: QemuSpec,
        launcher: Launcher,
        incarnation: str,
        find: Find,
        refused: Callable[[str], object],
    ) -> None:
        """Describe it. `find` returns its template, which may have to be made first, and raises
        `TemplateUnusable` or a `Denied`; `refused` is told why QEMU did not take that."""
        super().__init__(spec, launcher, incarnation)
        self._find = find
        self._refused = refused
        self._finding: asyncio.Task[Template] | None = None
        self._template: Template | None = None
        self._ram = -1
        self._stopped = False  # by somebody else than itself
        self._asleep = True

    async def prepare(self) -> None:
        """Start QEMU and have it read the template; its processors stand still.

        Raises `TemplateUnusable` if the domain could be started without a template, `Denied`,
        `MachineError`; then nothing is left.
        """
        try:
            await super().prepare()
        except (Denied, StateError, TemplateUnusable):
            raise
        except MachineError as error:
            if self._stopped:
                raise
            raise TemplateUnusable(str(error)) from error
        assert self._template is not None
        try:
            await restore(self._qmp, self._template.state)
        except MachineError as error:
            stopped = self._stopped
            self._kill()
            end = await asyncio.shield(self._exited)
            if stopped:
                raise
            self._refused(f"{error}; {end.reason}")
            raise TemplateUnusable(f"{self._name}: QEMU refused the template: {error}") from error
        except BaseException:
            self._kill()
            raise
        self._template = None

    def kill(self) -> None:
        """End the process at once; one that waits for its template does not get one."""
        self._stopped |= not self._exited.done()
        super().kill()
        if self._finding is not None:
            self._finding.cancel()

    async def _launch(self, start: Start, pairs: Pairs) -> None:
        self._finding = asyncio.ensure_future(self._find())
        try:
            self._template = await self._finding
        except asyncio.CancelledError:
            if self._stopped:
                raise StateError(f"{self._name} was ended while its template was made") from None
            raise
        finally:
            self._finding = None
        self._ram = self._template.own_open()
        try:
            await super()._launch(start, pairs)
        finally:
            os.close(self._ram)

    def _at_launch(self, spec: QemuSpec, first: int) -> tuple[list[str], Mapping[int, int]]:
        words = ram_arguments(spec.memory, first, share=False)
        return [*words, "-incoming", "defer"], {first: self._ram}
