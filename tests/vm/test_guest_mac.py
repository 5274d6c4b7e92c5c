"""A guest's own mandatory access control takes its range from the label outside.

One image, three domains: what the service may read inside follows from the domain's label alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import policies
from tests.support.cli import Cli

SYSTEM = """\
name = "mac"
policy = "dummy"

[domains.red]
label = "red"
image = "ledger"
memory = "256M"

[domains.blue]
label = "blue"
image = "ledger"
memory = "256M"

[domains.none]
label = "none"
image = "ledger"
memory = "256M"

[domains.clone]
label = "blue"
image = "ledger"
memory = "256M"
template = true
autostart = false

[domains.peer]
label = "peer"

[[channels]]
kind = "stream"
from = "red"
to = "peer"
name = "orders"

[jail]
accept-missing = ["cgroup", "swap"]
"""

RECIPE = """\
name = "ledger"
base = "selinux"
start = ["/usr/local/bin/ledger"]
confine = true

[[files]]
from = "ledger"
to = "/usr/local/bin/ledger"
mode = "0755"

[[files]]
from = "red"
to = "/srv/red"
range = "s0:c1"

[[files]]
from = "blue"
to = "/srv/blue"
range = "s0:c2"

[[files]]
from = "said"
to = "/srv/said"
range = "s0"

[ranges]
red = "s0:c1"
blue = "s0:c2"
"""

SERVICE = """\
#!/bin/sh
{
	cat /proc/self/attr/current && echo
	for name in red blue; do cat /srv/$name || echo "no $name"; done
	echo x >/etc/new && echo 'etc written'
	for file in label name policy generation; do echo "$file is $(cat /run/skerry/$file)"; done
	echo x >/run/skerry/label && echo 'label written'
	rm -f /run/skerry/name && [ ! -e /run/skerry/name ] && echo 'name gone'
	cat /run/skerry/writer && echo 'writer read'
	ls /run/skerry && echo listed
	cat /run/skerry/services/label && echo 'a command read'
	cat /run/skerry/said && echo 'another file read'
	echo "1 1 label" 1<>/run/skerry/call && echo 'pipe written'
	skerry label 2>&1 && echo called
	echo -n system_u:system_r:skerry_service_t:s0:c1.c3 >/proc/self/attr/current && echo widened
	echo -n system_u:system_r:kernel_t:s0 >/proc/self/attr/exec && echo freed
	for _ in $(seq 50); do [ -e /dev/virtio-ports/orders ] && break; sleep 0.1; done
	[ -e /dev/virtio-ports/orders ] && echo 'an order' >/dev/virtio-ports/orders && echo sent
	echo over
} >/srv/said 2>/dev/null
exec sleep 100000
"""

CALLERS = "skerry: only root may call the node, outside of a confined service"

FLASK_LABEL = "system_u:system_r:domU_t:s0:c1"

FLASK_SYSTEM = f"""\
name = "flask-mac"
policy = "xen-mls"
policy-manager = "domain"

[domains.red]
label = "{FLASK_LABEL}"
image = "ledger"
memory = "256M"

[domains.blue]
label = "{FLASK_LABEL.replace("c1", "c2")}"
image = "ledger"
memory = "256M"

[jail]
accept-missing = ["cgroup", "swap"]
"""
"""The image's own lines are for other labels, so the ranges of these count."""


@contextmanager
def running(system: str) -> Iterator[Cli]:
    """Run a system whose domains may boot the image `ledger`."""
    cli = Cli()
    try:
        for name, text in (
            ("system.toml", system),
            ("ledger.toml", RECIPE),
            ("ledger", SERVICE),
            ("red", "the red ledger\n"),
            ("blue", "the blue ledger\n"),
            ("said", ""),
        ):
            (cli.home / name).write_text(text)
        shutil.copy(policies.xen_mls(), cli.home / "xen-mls")
        cli.ok("image", "build", str(cli.home / "ledger.toml"))
        cli.ok("up", str(cli.home / "system.toml"), "--detach")
        yield cli
    finally:
        cli.down()


@pytest.fixture(scope="module")
def mac() -> Iterator[Cli]:
    """The system, running."""
    with running(SYSTEM) as cli:
        yield cli


def said(cli: Cli, domain: str) -> list[str]:
    """Return what the service of a domain found, once it is over."""
    script = "for _ in $(seq 200); do grep -q '^over$' /srv/said && break; sleep 0.2; done"
    return cli.ok("exec", domain, "--", "sh", "-c", f"{script}; cat /srv/said").splitlines()


def denials(cli: Cli, domain: str) -> list[str]:
    """Return what the guest's kernel says that it denied."""
    return [line for line in cli.ok("exec", domain, "dmesg").splitlines() if "avc:  denied" in line]


@pytest.mark.parametrize(("own", "other", "number"), [("red", "blue", 1), ("blue", "red", 2)])
def test_the_label_outside_decides_what_a_service_reads_inside(
    own: str, other: str, number: int, mac: Cli
) -> None:
    """The same image under two labels: each reads its own ledger, and the other's is denied by the
    guest's kernel, which says so with both ranges. Each label is the other's control."""
    lines = said(mac, own)
    context = f"system_u:system_r:skerry_service_t:s0:c{number}"
    assert lines[0].rstrip("\0") == context
    assert f"the {own} ledger" in lines
    assert f"no {other}" in lines
    assert f"the {other} ledger" not in lines
    found = [line for line in denials(mac, own) if f'name="{other}"' in line]
    assert found
    assert f"scontext={context} " in found[0]
    assert f"tcontext=system_u:object_r:skerry_data_t:s0:c{3 - number} " in found[0]
    assert not [line for line in denials(mac, own) if f'name="{own}"' in line]


def test_a_confined_service_changes_neither_its_range_nor_the_system(mac: Cli) -> None:
    """No wider range, no other type, no file of the system, no call; its channel it may write."""
    lines = said(mac, "red")
    assert not {"etc written", "called", "widened", "freed"} & set(lines)
    assert CALLERS in lines
    assert "sent" in lines
    got = mac.ok("exec", "peer", "--", "timeout", "10", "head", "-n1", "/dev/virtio-ports/orders")
    assert got == "an order\n"
    control = mac.ok("exec", "red", "--", "sh", "-c", "echo x >/etc/new && echo written")
    assert control == "written\n", "the agent, which is not confined, may"
    assert mac.ok("exec", "red", "--", "skerry", "label") == "red\n", "it may, too"


def test_a_confined_service_reads_what_the_host_says_of_it_and_nothing_beside(mac: Cli) -> None:
    """The four files, also after a relabel has replaced one; it writes none, and reads no other
    file of that folder, whatever its name is in another one. The agent's copy is the control."""
    files = "cd /run/skerry; for f in label name policy generation; do echo $f is $(cat $f); done"
    known = mac.ok("exec", "red", "--", "sh", "-c", files).splitlines()
    assert known[:2] == ["label is red", "name is red"]
    make = "mkdir -p /run/skerry/services; cd /run/skerry; echo x >services/label; echo x >said"
    mac.ok("exec", "red", "--", "sh", "-c", make)
    mac.ok("exec", "red", "--", "sh", "-c", ": >/srv/said; kill $(pidof sleep)")
    lines = said(mac, "red")
    assert set(known) <= set(lines)
    never = ("label written", "name gone", "writer read", "listed", "a command read")
    assert not {*never, "another file read", "pipe written"} & set(lines)
    others = "cd /run/skerry; cat writer services/label said && echo read"
    assert mac.ok("exec", "red", "--", "sh", "-c", others).endswith("x\nx\nread\n")
    mac.ok("relabel", "red", "blue")
    until = "for _ in $(seq 100); do grep -q blue /run/skerry/label && break; sleep 0.1; done"
    mac.ok("exec", "red", "--", "sh", "-c", until)
    confined = ("/lib/skerry/confined", "/bin/cat", "/run/skerry/label")
    assert mac.ok("exec", "red", "--", *confined) == "blue"
    mac.ok("relabel", "red", "red")
    until = until.replace("blue", "red")
    mac.ok("exec", "red", "--", "sh", "-c", f"{until}; rm -r /run/skerry/services/label")


def test_a_label_without_a_range_starts_no_service(mac: Cli) -> None:
    """The guest says so on its console; nothing runs unconfined in its place."""
    why = "nothing is run: the label none gives no range"
    for _ in range(10):
        console = mac.popen("console", "none", stdin=-1)
        time.sleep(2)
        console.kill()
        out, _ = console.communicate()
        if why in out:
            break
    assert why in out
    assert mac.ok("exec", "none", "--", "cat", "/srv/said") == ""


def test_a_flask_label_s_own_range_counts_where_no_line_is_for_it(mac: Cli) -> None:
    """The same script, given a label as a Flask policy makes it, and a wrong one."""
    run = "echo '{}' >/tmp/label; sed s,^raw=.*,raw=/tmp/label, /lib/skerry/confined >/tmp/c; "
    run += "sed -i 's/sleep 5/:/' /tmp/c; sh /tmp/c /bin/cat /proc/self/attr/current | tr -d '\\0'"
    for label in (FLASK_LABEL, f"acm=x,flask={FLASK_LABEL}"):
        got = mac.ok("exec", "red", "--", "sh", "-c", run.format(label))
        assert got == "system_u:system_r:skerry_service_t:s0:c1"
    for label in ("u:r:t", "u:r:t:s7", "u:r:t:s0:c5000", "x:s0:c1"):
        assert mac.ok("exec", "red", "--", "sh", "-c", run.format(label)) == ""


def test_a_relabel_outside_gives_no_service_another_range(mac: Cli) -> None:
    """Neither the one that runs, nor one that is started after it; `blue` is the control."""
    confined = ("/lib/skerry/confined", "/bin/cat", "/proc/self/attr/current")
    contexts = "cat /proc/[0-9]*/attr/current | tr '\\0' '\\n' | grep skerry_service | sort -u"
    of_red, of_blue = (f"system_u:system_r:skerry_service_t:s0:c{n}" for n in (1, 2))
    said(mac, "red")
    mac.ok("relabel", "red", "blue")
    until = "for _ in $(seq 100); do grep -q blue /run/skerry/label && break; sleep 0.1; done"
    assert mac.ok("exec", "red", "--", "sh", "-c", f"{until}; cat /run/skerry/label") == "blue"
    assert mac.ok("exec", "red", "--", *confined).rstrip("\0") == of_red
    mac.ok("exec", "red", "--", "sh", "-c", ": >/srv/said; kill $(pidof sleep)")
    lines = said(mac, "red")
    assert lines[0].rstrip("\0") == of_red
    assert "no blue" in lines
    assert mac.ok("exec", "red", "--", "sh", "-c", contexts).split() == [of_red]
    assert mac.ok("exec", "blue", "--", *confined).rstrip("\0") == of_blue
    mac.ok("relabel", "red", "red")


def test_a_clone_s_service_has_the_range_of_its_own_label(mac: Cli) -> None:
    """Its template's guest had none; what it began with counts, also after a relabel."""
    mac.ok("start", "clone")
    lines = said(mac, "clone")
    assert mac.ok("exec", "clone", "--", "ls", "/run/skerry/asleep"), "the control: it is a clone"
    assert lines[0].rstrip("\0") == "system_u:system_r:skerry_service_t:s0:c2"
    mac.ok("relabel", "clone", "red")
    confined = ("/lib/skerry/confined", "/bin/cat", "/proc/self/attr/current")
    assert mac.ok("exec", "clone", "--", *confined).rstrip("\0").endswith(":s0:c2")


def test_under_a_flask_policy_the_range_outside_is_the_range_inside() -> None:
    """Xen's policy with MLS outside, which a guest of its own decides by, and Debian's inside: one
    context's range, in two kernels."""
    with running(FLASK_SYSTEM) as cli:
        for own, other, number in (("red", "blue", 1), ("blue", "red", 2)):
            lines = said(cli, own)
            context = f"system_u:system_r:skerry_service_t:s0:c{number}"
            assert lines[0].rstrip("\0") == context
            assert f"the {own} ledger" in lines
            assert f"no {other}" in lines
            assert any(f"scontext={context} " in line for line in denials(cli, own))
