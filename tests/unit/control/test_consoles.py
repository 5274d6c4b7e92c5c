"""Who may read a console and who may write it, under a FLASK policy that tells them apart."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from skerry.control.failure import failed
from skerry.errors import Denied, InputError, SkerryError, StateError
from skerry.label import Label
from skerry.node.kept import read_setup, save_setup
from skerry.node.setup import load_setup
from skerry.wire import control as wire
from skerry.wire.system_files import PolicyFile, SystemFiles, encode_files
from tests.support.policies import compile_conf
from tests.unit.control.test_calls import Client, Host, play, ticks

DATA = Path(__file__).parents[1] / "policydb/data/xen.conf"

RULES = """
bool watchers_may_watch true;
bool nothing_of_theirs true;
type watcher_t, domain_type;
type watcher_channel, event_type;
type clerk_t, domain_type;
type console_t;
type sealed_t;
role vm_r types { watcher_t clerk_t console_t sealed_t };
role object_r;
role object_r types { console_t sealed_t };
type_transition watcher_t domain_type:event watcher_channel;
if (watchers_may_watch) { allow watcher_t guest_t:grant map_read; }
allow guest_t dom0_t:grant { map_read map_write };
allow clerk_t console_t:resource use;
allow clerk_t console_t:grant map_read;
allow guest_t console_t:resource use;
allow guest_t console_t:grant { map_read map_write };
allow dom0_t { console_t sealed_t }:resource use;
allow dom0_t { console_t sealed_t }:grant { map_read map_write };
"""
"""A watcher may read what a guest shows and nothing else; a clerk only a console's own label."""

ROOT = "system_u:system_r:dom0_t"
GUEST = "system_u:vm_r:guest_t"
WATCHER = "system_u:vm_r:watcher_t"
CLERK = "system_u:vm_r:clerk_t"
CONSOLE = "system_u:vm_r:console_t"
SEALED = "system_u:vm_r:sealed_t"

SYSTEM = f"""
name = "consoles"
policy = "policy.bin"
[operators]
"uid:{os.getuid()}" = "{ROOT}"
[domains.a]
label = "{GUEST}"
machine = "simulator"
"""
LABELLED = f'{SYSTEM}console = "{CONSOLE}"\n'


def compiled(folder: Path) -> Path:
    """Write the policy where the system names it."""
    text = DATA.read_text()
    text = text.replace("class security\n", "class security\nclass resource\n", 1)
    text = text.replace("class security {", "class resource { use add }\nclass security {", 1)
    text = text.replace("class domain { create", "class domain { unpause create")
    text = text.replace("domain_type:domain { create", "domain_type:domain { unpause create")
    text = text.replace("user system_u roles", RULES + "user system_u roles")
    source = folder / "policy"
    compile_conf(text, source, "xen", 30)
    return source.rename(folder / "policy.bin")


class User(Client):
    """An operator of a label."""

    def __init__(self, label: str) -> None:
        super().__init__("")
        self.operator = Label((("flask", label),))
        self.uid = os.getuid()


def scene_of(folder: Path, scene: Callable[[Host], Awaitable[None]], system: str = SYSTEM) -> None:
    """Play a scene with the domain up."""
    compiled(folder)

    async def with_domain(host: Host) -> None:
        await host.up()
        await scene(host)

    play(folder, with_domain, policy="", system=system)


def opened(host: Host, label: str, *, read_only: bool = False) -> tuple[User, asyncio.Task[object]]:
    """Open the console."""
    user = User(label)
    call = host.handle(wire.Console("a", read_only), user)
    return user, asyncio.create_task(call)


async def refusal(host: Host, label: str, *, read_only: bool = False) -> SkerryError:
    """Open the console, which must be refused."""
    _, console = opened(host, label, read_only=read_only)
    with pytest.raises(Denied) as denied:
        await console
    return denied.value


async def ends(console: asyncio.Task[object], client: Client) -> None:
    """Leave a console that is open."""
    assert not console.done()
    client.type(None)
    with pytest.raises(SkerryError, match="client has gone"):
        await console


def test_who_may_only_read_opens_a_console_to_be_read(tmp_path: Path) -> None:
    """The plain call is denied and says what is allowed; nothing that is typed gets in."""

    async def scene(host: Host) -> None:
        denied = await refusal(host, WATCHER)
        shown = failed(denied).text
        assert "denied: read and write a console" in shown
        assert "try:        `skerry console --read-only a`: that is allowed" in shown
        user, console = opened(host, WATCHER, read_only=True)
        await ticks()
        assert user.shown.startswith(b"a runs")
        typed: list[bytes] = []
        host.machines["a"].console.write = typed.append  # type: ignore[method-assign, assignment]
        user.type(b"reboot\n")
        with pytest.raises(StateError, match="only to be read"):
            await console
        assert typed == []
        owner, console = opened(host, ROOT)
        owner.type(b"reboot\n")
        await ticks()
        assert typed == [b"reboot\n"], "the control: a console opened to be written takes it"
        await ends(console, owner)

    scene_of(tmp_path, scene)


def test_who_may_not_read_is_promised_nothing(tmp_path: Path) -> None:
    """A refusal says `--read-only` only where that is allowed."""

    async def scene(host: Host) -> None:
        for read_only in (False, True):
            denied = await refusal(host, CLERK, read_only=read_only)
            assert "--read-only" not in failed(denied).text

    scene_of(tmp_path, scene)


def test_a_console_with_a_label_of_its_own_is_asked_by_it(tmp_path: Path) -> None:
    """Who may read that label reads, whatever the domain's; who may read the domain's may not."""

    async def scene(host: Host) -> None:
        clerk, console = opened(host, CLERK, read_only=True)
        await ticks()
        assert clerk.shown.startswith(b"a runs")
        await ends(console, clerk)
        assert "--read-only" in failed(await refusal(host, CLERK)).text
        await refusal(host, WATCHER, read_only=True)
        owner, console = opened(host, ROOT)
        await ticks()
        await ends(console, owner)

    scene_of(tmp_path, scene, LABELLED)


def test_a_domain_that_may_not_use_its_consoles_label_shows_nothing(tmp_path: Path) -> None:
    """A file can't give a domain's output a label that the policy does not let it write."""

    async def scene(host: Host) -> None:
        denied = await refusal(host, ROOT, read_only=True)
        assert GUEST in failed(denied).text
        assert SEALED in failed(denied).text

    scene_of(tmp_path, scene, LABELLED.replace(CONSOLE, SEALED))


@pytest.mark.parametrize(
    ("boolean", "falls"), [("watchers_may_watch", True), ("nothing_of_theirs", False)]
)
def test_a_change_of_policy_judges_readers_again(tmp_path: Path, boolean: str, falls: bool) -> None:
    """A reader whom the new policy refuses is cut; the control: another change leaves him."""

    async def scene(host: Host) -> None:
        user, console = opened(host, WATCHER, read_only=True)
        await ticks()
        done = await host.handle(wire.SetBooleans({boolean: False}), User(ROOT))
        assert isinstance(done, dict)
        assert done["sessions_cut"] == int(falls)
        if falls:
            with pytest.raises(Denied, match="the session was cut: the policy changed"):
                await console
        else:
            await ends(console, user)

    scene_of(tmp_path, scene)


async def _given(host: Host, text: str) -> None:
    path = host.node.setup.system.path
    content = (path.parent / "policy.bin").read_bytes()
    files = SystemFiles(str(path), text, (PolicyFile(str(path.parent / "policy.bin"), content),))
    owner = User(ROOT)
    sent = encode_files(files)
    for start in range(0, len(sent), 60_000):
        owner.type(sent[start : start + 60_000])
    owner.type(b"")
    await host.handle(wire.Reconcile(), owner)


@pytest.mark.parametrize(("after", "falls"), [(LABELLED, True), (SYSTEM + "channels = 5\n", False)])
def test_a_console_that_gets_a_label_judges_its_readers_again(
    tmp_path: Path, after: str, falls: bool
) -> None:
    """No restart is needed; the control: another key of the domain cuts nobody."""

    async def scene(host: Host) -> None:
        machine = host.machines["a"]
        user, console = opened(host, WATCHER, read_only=True)
        await ticks()
        await _given(host, after)
        assert host.machines["a"] is machine, "the domain runs on"
        if falls:
            with pytest.raises(Denied, match="the session was cut: the system file changed"):
                await console
            await refusal(host, WATCHER, read_only=True)
        else:
            await ends(console, user)

    scene_of(tmp_path, scene)


def test_a_restarted_node_knows_the_consoles_labels(tmp_path: Path) -> None:
    """They are kept with what was in force."""
    compiled(tmp_path)
    (tmp_path / "system.toml").write_text(LABELLED)
    setup = load_setup(tmp_path / "system.toml")
    kept = read_setup(tmp_path, save_setup(tmp_path, setup))
    assert kept.consoles == {"a": Label((("flask", CONSOLE),))} == setup.consoles


def test_a_label_that_the_policy_lacks_is_an_error_with_its_line(tmp_path: Path) -> None:
    """As for every other label of the file."""
    compiled(tmp_path)
    (tmp_path / "system.toml").write_text(LABELLED.replace(CONSOLE, "no:such:label"))
    with pytest.raises(InputError, match=r"system\.toml:9: .*no:such:label"):
        load_setup(tmp_path / "system.toml")
