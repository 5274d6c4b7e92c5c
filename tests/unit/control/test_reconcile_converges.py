"""Whatever file follows whatever file: a reconcile ends where the file says, and only once."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.monitor.domain import ALIVE, Domain, Resource
from skerry.node.setup import make_setup
from skerry.wire.system_files import PolicyFile, SystemFiles
from tests.support.reconciling import ports, up
from tests.unit.control.test_calls import POLICY, Host

NAMES, LABELS = "abcd", ("red", "blue", "helper")
DISKS = '[resources.reds]\nste = "red"\n[resources.shared]\nste = "all"\n'
POLICIES = (
    POLICY + DISKS,
    POLICY.replace('ste = ["blue", "all"]', 'ste = ["blue"]') + DISKS,
    POLICY.replace('[labels.red]\nste = ["red", "all"]', "[labels.red]\nste = []") + DISKS,
)


class Domains(msgspec.Struct, frozen=True):
    """A drawn file: its domains (label, memory, autostart), its channels, its policy.

    `disk` is the label and image of the one disk, `users` who uses it, and whether to read alone.
    """

    domains: dict[str, tuple[str, str, bool]]
    channels: frozenset[tuple[str, str]]
    policy: str
    disk: tuple[str, str]
    users: dict[str, bool]

    def text(self) -> str:
        """Return the system file."""
        parts = ['name = "drawn"\npolicy = "policy.toml"\n[domains]\n']
        for name, (label, memory, auto) in self.domains.items():
            start = str(auto).lower()
            parts.append(
                f'[domains.{name}]\nlabel = "{label}"\nmemory = "{memory}"\n'
                f'machine = "simulator"\nautostart = {start}\n'
            )
            if name in self.users:
                parts.append(f'uses = ["disk{":ro" if self.users[name] else ""}"]\n')
        for one, other in sorted(self.channels):
            parts.append(
                f'[[channels]]\nkind = "stream"\nfrom = "{one}"\nto = "{other}"\n'
                f'name = "{one}{other}"\n'
            )
        if self.users:
            label, file = self.disk
            parts.append(f'[resources.disk]\nkind = "disk"\nlabel = "{label}"\nfile = "{file}"\n')
        return "".join(parts)


@st.composite
def drawn(draw: st.DrawFn) -> Domains:
    """Draw a file over few names, so that two files have much in common."""
    domain = st.tuples(st.sampled_from(LABELS), st.sampled_from(["64M", "96M"]), st.booleans())
    domains = draw(st.dictionaries(st.sampled_from(NAMES), domain, min_size=1))
    pairs = [(one, other) for one in sorted(domains) for other in sorted(domains) if one < other]
    channels = draw(st.frozensets(st.sampled_from(pairs))) if pairs else frozenset()
    users = draw(st.dictionaries(st.sampled_from(sorted(domains)), st.booleans()))
    disk = draw(st.tuples(st.sampled_from(["reds", "shared"]), st.sampled_from(["one", "two"])))
    return Domains(domains, channels, draw(st.sampled_from(POLICIES)), disk, users)


def incarnations(host: Host) -> dict[str, Domain]:
    """Return the domains that are alive."""
    return {name: host.monitor.domain(name) for name in host.node.alive()}


async def follow(host: Host, file: Domains) -> None:
    """Give the node a file, and hold what it did against what it should."""
    before, was, policy = incarnations(host), host.node.setup, host.monitor.mediator.decider
    generation, channels = policy.generation, host.node.bound()
    result = await up(host, file.text(), file.policy, evict=True)
    path = was.system.path
    content = PolicyFile(str(path.parent / "policy.toml"), file.policy.encode())
    wanted = make_setup(SystemFiles(str(path), file.text(), (content,)))
    setup, alive = host.node.setup, incarnations(host)
    assert set(host.monitor.domains) <= set(file.domains) == set(setup.system.domains)
    assert setup.stack.digest == wanted.stack.digest
    for name, domain in alive.items():
        same = domain is before.get(name)
        assert domain.state in ALIVE
        spec = wanted.system.domains[name]
        if name in was.system.domains and name in before:
            old = was.system.domains[name]
            kept = old.memory == spec.memory and spec.slots <= old.slots
            assert same or not kept, "what the file does not change is not started anew"
        if f"relabel {name}" not in result.refused and f"restart {name}" not in result.refused:
            assert domain.label == wanted.labels[name]
    refused = {what.split()[-1] for what in result.refused}
    starts = {n for n, d in wanted.system.domains.items() if d.autostart and n not in alive}
    assert starts <= refused
    for channel in host.monitor.channels:
        verdict = await host.monitor.mediator.judge(channel.hook, channel.parties())
        assert verdict.allowed
        if isinstance(channel.sink, Resource):
            assert host.monitor.resources["disk"] is channel.sink
        assert channels.get(channel.number, None) in (None, host.node.bound()[channel.number])
    assert set(host.node.bound().values()) <= set(wanted.system.channels)
    if not result.refused:
        assert result.answer["left"] == []
    assert policy.generation == generation + (was.stack.digest != wanted.stack.digest)


async def repeat(host: Host, file: Domains) -> None:
    """Give it the same file again: nothing is touched, and the same is refused."""
    before, channels = incarnations(host), ports(host)
    generation = host.monitor.mediator.decider.generation
    result = await up(host, file.text(), file.policy)
    assert incarnations(host) == before
    assert ports(host) == channels
    assert host.monitor.mediator.decider.generation == generation
    assert bool(result.refused) is result.answer["changed"]


@given(files=st.lists(drawn(), min_size=2, max_size=4))
@settings(max_examples=150)
def test_any_file_after_any_file_converges_and_the_second_time_is_idle(
    files: list[Domains],
) -> None:
    """What runs is what the file says but for what is refused; what is the same is the same
    machine; every channel that lives is one of the file's and allowed; twice is once."""

    async def run(folder: Path) -> None:
        host = Host(folder, files[0].policy, files[0].text())
        try:
            await host.up()
            for file in files[1:]:
                await follow(host, file)
                await repeat(host, file)
        finally:
            await host.node.down(0.1)
            await host.monitor.settle()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))
