"""The other way to start a machine: libvirt, in a session of its own that ends with the row.

It is given as little to do as it can have: the same QEMU, kernel, initramfs, memory and processors,
a serial line, the agent's port, and no other device. It has no security driver, no control groups
and no log daemon of its own, all of which our jail is the counterpart of.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from bench.bare import BOOT_S, READY
from skerry.errors import SkerryError
from skerry.machine.qemu.command import AGENT_PORT, BINARY, QemuSpec

DAEMON, VIRSH = "/usr/sbin/libvirtd", "/usr/bin/virsh"
NOBODY = 65534
"""Who runs it where this is root: a session of root's would be the host's own libvirt."""

LOOK_S = 0.002
ANSWERS_S = 30.0

_CONFIG = 'security_driver = "none"\nstdio_handler = "file"\ncgroup_controllers = []\n'
_DOMAIN = """\
<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='b'>{memory}</memory>
  <vcpu>{cpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{emulator}</emulator>
    <serial type='file'><source path='{console}'/></serial>
    <channel type='unix'><target type='virtio' name='{port}'/></channel>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class Libvirt:
    """A libvirt that has one machine defined."""

    def __init__(self, home: Path, spec: QemuSpec) -> None:
        """Begin with an empty home; `opened` starts it."""
        self._home = home
        self._spec = spec
        self._console = home / "console"
        self._env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
        }
        self._as = ["/usr/bin/setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        if os.getuid():
            self._as = []
        self._daemon: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Start the daemon and define the machine. Raises `SkerryError`."""
        for tool in (DAEMON, VIRSH):
            if not Path(tool).exists():
                fix = "apt-get install libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients"
                raise SkerryError(f"{tool} is not installed", fix=fix)
        config = self._home / "config/libvirt"
        for folder in (config, self._home / "run", self._home / "cache"):
            folder.mkdir(parents=True)
        (config / "qemu.conf").write_text(_CONFIG)
        (self._home / "domain.xml").write_text(self._domain())
        if not os.getuid():
            for path in [self._home, *self._home.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
        with (self._home / "log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [*self._as, DAEMON], env=self._env, stdout=log, stderr=log
            )
        end = time.monotonic() + ANSWERS_S
        while self._virsh("uri").returncode:
            if time.monotonic() > end or self._daemon.poll() is not None:
                words = (self._home / "log").read_text(errors="replace")[-300:]
                raise SkerryError(f"libvirtd does not answer: {words}")
            time.sleep(0.2)
        self._must("define", str(self._home / "domain.xml"))

    def _domain(self) -> str:
        spec = self._spec
        return _DOMAIN.format(
            kind="kvm" if spec.accel == "kvm" else "qemu",
            name=spec.name,
            memory=spec.memory,
            cpus=spec.cpus,
            kernel=spec.bzimage,
            initrd=spec.initrd,
            cmdline=escape(spec.cmdline),
            emulator=BINARY,
            console=self._console,
            port=AGENT_PORT,
        )

    def _virsh(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        argv = [*self._as, VIRSH, "-q", "-c", "qemu:///session", *words]
        return subprocess.run(argv, env=self._env, capture_output=True, check=False, timeout=BOOT_S)

    def _must(self, *words: str) -> None:
        done = self._virsh(*words)
        if done.returncode:
            raise SkerryError(f"virsh {words[0]}: {done.stderr.decode(errors='replace').strip()}")

    def start(self) -> float:
        """Return the seconds from `virsh start` to the guest's first line; then it is ended."""
        self._console.unlink(missing_ok=True)
        begin = time.perf_counter()
        try:
            self._must("start", self._spec.name)
            while READY not in self._said():
                if time.perf_counter() - begin > BOOT_S:
                    raise SkerryError(f"libvirt's guest did not boot: {self._said()[-200:]!r}")
                time.sleep(LOOK_S)
            return time.perf_counter() - begin
        finally:
            self._virsh("destroy", self._spec.name)

    def _said(self) -> bytes:
        try:
            return self._console.read_bytes()
        except FileNotFoundError:
            return b""

    def close(self) -> None:
        """End the machine and the daemon."""
        if self._daemon is not None:
            self._virsh("destroy", self._spec.name)
            self._daemon.terminate()
            self._daemon.wait()


@contextlib.contextmanager
def libvirt(spec: QemuSpec) -> Iterator[Libvirt]:
    """Give a libvirt with a machine as `spec` has it; nothing of it is left afterwards."""
    home = Path(tempfile.mkdtemp(prefix="skerry-libvirt-", dir="/var/tmp"))
    made = Libvirt(home, spec)
    try:
        made.open()
        yield made
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)
