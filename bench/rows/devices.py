"""What the core spends while bytes cross links, one-way streams, memories and disks."""

from __future__ import annotations

from bench.measure import Row, say, single
from bench.place import run, system, up
from bench.program import INSTALL, program
from bench.rows.memory import OURS
from bench.rows.stream import spent
from skerry.errors import SkerryError

MEGABYTES, TIMES = 64, 8

_SYSTEM = f"""
[[channels]]
kind = "link"
name = "wire"
from = "one"
to = "two"
[[channels]]
kind = "stream"
name = "pipe"
from = "one"
to = "two"
one-way = true
[[channels]]
kind = "memory"
name = "ring"
from = "one"
to = "two"
size = "1M"
[resources.data]
kind = "disk"
label = "bench"
file = "data.img"
size = "{MEGABYTES}M"
"""
_KEYS = 'memory = "256M"\nboard = "pc"\n'

_FILE = f"mkdir -p /tmp/w; [ -s /tmp/w/f ] || head -c {MEGABYTES}m /dev/zero >/tmp/w/f"
_FETCH = "wget -q -O /dev/null http://10.0.0.1/f"
_RING = f"echo 1 >{OURS}/enable; /tmp/ring {OURS}/resource2 {{}} {TIMES * MEGABYTES} 2"
_DISK = f"dd if=/dev/zero of=/dev/disk/data bs=64k count={16 * MEGABYTES} conv=fsync"
_TIMES = f"for i in {' '.join('x' * TIMES)}; do"
_WORK = {
    "link": (
        "link-up wire 10.0.0.1/24; httpd -f -p 10.0.0.1:80 -h /tmp/w",
        f"link-up wire 10.0.0.2/24; sleep 4; {_TIMES} {_FETCH} || exit; done; echo done",
    ),
    "one-way": (
        f"sleep 3; head -c {TIMES * MEGABYTES}m /dev/zero >/dev/virtio-ports/pipe",
        f"head -c {TIMES * MEGABYTES}m /dev/virtio-ports/pipe | wc -c; echo done",
    ),
    "memory": (f"sleep 3; {_RING.format('send')}", f"{_RING.format('receive')} && echo done"),
    "disk": ("true", f"sleep 3; {_TIMES} {_DISK} || exit; done; echo done"),
}
"""What one guest does, and what the other does and tells."""


def core_cpu() -> Row:
    """CPU time of supervisor and node meanwhile: the most that one of the four costs."""
    domains = system(["one"], _KEYS) + '[domains.two]\nlabel = "bench"\n' + _KEYS
    with up(f'{domains}uses = ["data"]\n{_SYSTEM}') as cli:
        for name in ("one", "two"):
            install = ["exec", "--stdin", name, "--", "sh", "-c", INSTALL.format("ring")]
            cli.ok(*install, stdin=program("ring"))
        run(cli, "exec", "one", "--", "sh", "-c", _FILE)
        costs = []
        for kind, (one, two) in _WORK.items():
            cost, seconds = spent(cli, f"({two}) >/tmp/got 2>&1 &", f"({one}) >/dev/null 2>&1 &")
            said = run(cli, "exec", "two", "--", "cat", "/tmp/got")
            if not said.endswith("done\n"):
                raise SkerryError(f"{kind}: the work did not come to its end: {said!r}")
            say(f"{kind}: the core spent {cost:.2f} ms in {seconds:.1f} s")
            costs.append(cost)
    return single("devices-core-cpu-ms", "ms", [max(costs)], "< 10")
