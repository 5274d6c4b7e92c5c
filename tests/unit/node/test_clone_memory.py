"""A clone has room for what it touches: its own page, and the template's that comes with it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from skerry.errors import LayerMissing
from skerry.jail import cgroup
from skerry.machine.qemu.template import Template, make_ram, seal_now
from skerry.node import jails
from skerry.node.jails import Identities, Inmate, MachineJails
from skerry.supervisor.client import SupervisorClient

SIZE = 96 << 20
OVERHEAD = 48 << 20

TOUCH = """
import mmap, sys
for directory in sys.argv[2:]:
    with open(directory + '/cgroup.procs', 'w') as file:
        file.write('0')
with open(f'/proc/self/fd/{sys.argv[1]}', 'rb') as file:
    memory = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
for place in range(0, len(memory), mmap.PAGESIZE):
    memory[place] = 1
print('touched')
"""


def test_a_clone_that_writes_all_of_its_memory_is_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The group of a clone holds both; one of another machine (the control) is too small for it."""
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        pytest.skip("on a host with swap the rest goes there")
    monkeypatch.setattr(jails, "MEMORY_OVERHEAD", OVERHEAD)
    maker = MachineJails(cast(SupervisorClient, None), (), cast(Identities, None))
    ends = []
    for template in (True, False):
        ram = make_ram(SIZE)
        seal_now(ram)
        memory = Template(ram, b"")
        try:
            groups = maker._groups(Inmate("a", "microvm", {}, SIZE, kvm=False, template=template))
        except LayerMissing as error:
            pytest.skip(f"this host gives no control groups, and so no limits: {error}")
        try:
            words = [sys.executable, "-I", "-S", "-c", TOUCH, str(ram), *groups]
            done = subprocess.run(words, pass_fds=[ram], capture_output=True, check=False)
            ends.append((done.returncode, done.stdout))
        finally:
            cgroup.remove(groups)
        assert (memory.grown() == SIZE) == template
    assert ends == [(0, b"touched\n"), (-signal.SIGKILL, b"")]
