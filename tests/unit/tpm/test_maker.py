"""The uses of a TPM, with real swtpms in real jails: made once, kept, refused, cut."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skerry.device.tpm import commands, give, running, state
from skerry.device.tpm.maker import TpmUse
from skerry.device.tpm.running import Words
from skerry.device.tpm.state import STATE_FILE, Record, _open_to
from skerry.errors import Denied
from skerry.jail.identity import Identity
from tests.support.swtpms import Chips, chips, ended, opened, talk
from tests.support.tpm import RANDOM


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every uid can traverse."""
    with tempfile.TemporaryDirectory(prefix="skerry-tpm-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def play(scene: Callable[[Chips], object]) -> None:
    """Run a scene over a folder of its own."""

    async def run() -> None:
        async with chips() as found:
            await scene(found)  # type: ignore[misc]

    asyncio.run(run())


def test_a_tpm_is_made_once_and_is_the_same_ever_after() -> None:
    """Its key is what the TPM itself says; the guest finds it not yet started, as a real one."""

    async def scene(found: Chips) -> None:
        use = await found.use("chip")
        point, key = use.point, (found.folder / "keys/tpm-chip").read_text()
        assert commands.is_answer(talk(use, RANDOM))
        with pytest.raises(commands.TpmError, match="0x100"):
            commands.answer(talk(use, RANDOM))
        commands.answer(talk(use, commands.STARTUP))
        assert commands.point_of(talk(use, commands.read_key())) == point
        assert len(commands.answer(talk(use, RANDOM))) == 10
        await ended(use)
        again = await found.use("chip", channel=2)
        assert again.point == point
        commands.answer(talk(again, commands.STARTUP))
        assert commands.point_of(talk(again, commands.read_key())) == point
        assert (found.folder / "keys/tpm-chip").read_text() == key
        await ended(again)

    play(scene)


def test_two_tpms_have_keys_of_their_own() -> None:
    """Neither the attestation key nor the key of the state is another's."""

    async def scene(found: Chips) -> None:
        one, other = await asyncio.gather(found.use("a"), found.use("b", "two", 2))
        assert one.point != other.point
        assert one.uid != other.uid or one.uid == os.getuid()
        keys = [path.read_text() for path in (found.folder / "keys").iterdir()]
        assert len(set(keys)) == 2
        for use in (one, other):
            await ended(use)

    play(scene)


def test_a_tpm_is_its_first_domains_and_is_used_once_at_a_time() -> None:
    """Both refusals say what to do; the owner gets it again when its use has ended."""

    async def scene(found: Chips) -> None:
        tpm = found.tpm("chip")
        use = await opened(tpm)
        with pytest.raises(Denied, match="is used already") as refused:
            tpm.mint(False, source="one")
        assert refused.value.code == "TPM-IN-USE"
        with pytest.raises(Denied, match="belongs to domain one, not to two") as refused:
            tpm.mint(False, source="two")
        assert refused.value.code == "TPM-OWNED"
        await ended(use)
        with pytest.raises(Denied, match="belongs to domain one"):
            found.tpm("chip").mint(False, source="two")
        await ended(await opened(tpm))

    play(scene)


def test_whose_it_is_is_on_the_disk_before_it_can_be_used() -> None:
    """A domain that was killed before the TPM was made owns it; the next start makes it."""

    async def scene(found: Chips) -> None:
        assert found.kept("chip").claim("one") == Record("one")
        found.kept("chip").key(Record("one"))
        (found.folder / "states/chip").mkdir()
        (found.folder / "states/chip" / STATE_FILE).write_bytes(b"half of a state")
        with pytest.raises(Denied, match="belongs to domain one"):
            found.tpm("chip").mint(False, source="two")
        use = await found.use("chip")
        assert commands.is_answer(talk(use, RANDOM))
        await ended(use)

    play(scene)


def _flip(content: bytes) -> bytes:
    return content[:700] + bytes([content[700] ^ 1]) + content[701:]


SPOILERS: dict[str, tuple[str, Callable[[Chips, bytes], bytes | None], str]] = {
    "control": (f"states/chip/{STATE_FILE}", lambda found, content: content, ""),
    "missing": (f"states/chip/{STATE_FILE}", lambda found, content: None, "is missing"),
    "truncated": (
        f"states/chip/{STATE_FILE}",
        lambda found, content: content[: len(content) // 2],
        "did not start over its state",
    ),
    "empty": (
        f"states/chip/{STATE_FILE}",
        lambda found, content: b"",
        "did not start over its state",
    ),
    "flipped": (
        f"states/chip/{STATE_FILE}",
        lambda found, content: _flip(content),
        "Data integrity is compromised",
    ),
    "foreign": (
        f"states/chip/{STATE_FILE}",
        lambda found, content: (found.folder / "states/other" / STATE_FILE).read_bytes(),
        "Data integrity is compromised",
    ),
    "long": (
        f"states/chip/{STATE_FILE}",
        lambda found, content: bytes(state.MAX_STATE + 1),
        "it is longer than",
    ),
    "another key": (
        "keys/tpm-chip",
        lambda found, content: content[::-1],
        "Data integrity is compromised",
    ),
    "no hexadecimal key": ("keys/tpm-chip", lambda found, content: b"x" * 64, "is damaged"),
    "short key": ("keys/tpm-chip", lambda found, content: content[:32], "is damaged"),
    "no key": ("keys/tpm-chip", lambda found, content: None, "No such file"),
    "no record": ("records/chip", lambda found, content: None, "its record"),
    "changed record": (
        "records/chip",
        lambda found, content: content.replace(b"one", b"two"),
        "its digest does not match",
    ),
    "no text as record": ("records/chip", lambda found, content: b"\xff\n{}", "its digest"),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_what_is_spoiled_is_refused_and_never_a_fresh_tpm(spoiler: str) -> None:
    """One line says what is wrong and what to do; put back, it is the same TPM."""
    file, change, words = SPOILERS[spoiler]

    async def scene(found: Chips) -> None:
        other, use = await found.use("other", "two", 2), await found.use("chip")
        point = use.point
        await ended(other)
        await ended(use)
        path = found.folder / file
        content = path.read_bytes()
        spoiled = change(found, content)
        if spoiled is None:
            path.unlink()
        else:
            path.write_bytes(spoiled)
        if words:
            with pytest.raises(Denied, match=words) as refused:
                await found.use("chip")
            assert refused.value.code == state.BROKEN
            assert refused.value.fix
            assert "\n" not in str(refused.value)
            path.write_bytes(content)
        again = await found.use("chip")
        assert again.point == point
        await ended(again)

    play(scene)


def test_a_swtpm_that_still_runs_keeps_the_next_one_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started it. The control: killed, it is waited for, and the next one starts."""

    async def scene(found: Chips) -> None:
        use = await found.use("chip")
        monkeypatch.setattr(state, "LOCK_S", 0.3)
        with pytest.raises(Denied, match="used by another process still"):
            await found.use("chip", channel=2)
        assert commands.is_answer(talk(use, RANDOM))
        use.cut()
        monkeypatch.setattr(state, "LOCK_S", 5.0)
        await ended(await found.use("chip", channel=3))

    play(scene)


def test_what_a_swtpm_left_in_its_folder_is_removed_or_refused() -> None:
    """A link in the place of the state leads nowhere; other files go with the next use."""

    async def scene(found: Chips) -> None:
        await ended(await found.use("chip"))
        folder = found.folder / "states/chip"
        (folder / "more").write_bytes(b"x")
        await ended(await found.use("chip"))
        assert not (folder / "more").exists()
        (folder / STATE_FILE).rename(found.folder / "elsewhere")
        (folder / STATE_FILE).symlink_to(found.folder / "elsewhere")
        with pytest.raises(Denied, match="cannot be"):
            await found.use("chip")

    play(scene)


def test_a_cut_ends_the_swtpm_and_the_machines_end() -> None:
    """Nothing is answered any more; the cut comes also in the middle of the start."""

    async def scene(found: Chips) -> None:
        use = await found.use("chip")
        assert use.is_whole()
        assert use.twins.keys() == {"source", "sink"}
        end = os.dup(use.ends["source"])
        helper = use._helper
        assert helper is not None
        use.handed_over()
        use.cut()
        assert os.read(end, 1) == b""
        with pytest.raises(BrokenPipeError):
            os.write(end, RANDOM)
        os.close(end)
        assert await asyncio.wait_for(helper.process.exited, 10)
        assert not use.is_whole()
        assert not use.twins
        assert use.cut() == 0
        for _ in range(3):
            tpm = found.tpm("chip")
            early = tpm.mint(False, source="one")
            opening = asyncio.ensure_future(early.open(7))
            await asyncio.sleep(0.01)
            early.cut()
            await asyncio.gather(opening, return_exceptions=True)
            assert not early.is_whole()
        await ended(await found.use("chip"))

    play(scene)


def test_a_use_goes_on_in_the_next_life_of_its_node() -> None:
    """Adopted from its twins and helper it is whole and works; without its helper it is not."""

    async def scene(found: Chips) -> None:
        use = await found.use("chip")
        helper, twins = use._helper, {side: os.dup(fd) for side, fd in use.twins.items()}
        next_life = found.tpm("chip")
        adopted = next_life.adopt(twins, helper, "d/one/abcd")
        assert adopted.is_whole()
        assert adopted.point == use.point
        with pytest.raises(Denied, match="is used already"):
            next_life.mint(False, source="one")
        commands.answer(talk(use, commands.STARTUP))
        orphan = TpmUse.adopt(found.tpm("chip"), adopted._pair, None, "")
        assert not orphan.is_whole()
        await ended(adopted)
        assert talk(use, RANDOM) == b""
        use.cut()
        await ended(await opened(next_life))

    play(scene)


def test_a_swtpm_that_is_frozen_while_it_starts_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bind fails by a deadline, and what was frozen is killed."""

    async def scene(found: Chips) -> None:
        await ended(await found.use("chip"))
        monkeypatch.setattr(running, "ANSWER_S", 0.5)
        tpm = found.tpm("chip")
        real = tpm._start

        async def start(*words: object) -> object:
            helper = await real(*words)  # type: ignore[arg-type]
            for pid in await asyncio.to_thread(below, helper.process.pid):  # type: ignore[attr-defined]
                os.kill(pid, signal.SIGSTOP)
            return helper

        tpm._start = start  # type: ignore[assignment]
        with pytest.raises(Denied, match="did not answer"):
            await opened(tpm)

    play(scene)


def below(pid: int) -> list[int]:
    """Return a process and its children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *map(int, text.split())]


def test_a_swtpms_words_are_bounded_printable_and_one_line() -> None:
    """What would make its memory larger is refused by the kernel."""
    words = Words()
    assert os.write(words.fileno(), b"swtpm: no\x1b[2J\nsecond") > 0
    assert words.text() == "no?[2J"
    with pytest.raises(PermissionError):
        os.pwrite(words.fileno(), b"x", running.MAX_WORDS)
    words.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two other users")
def test_an_ordinary_users_access_list_lets_in_one_uid(open_folder: Path) -> None:
    """The jail's uid makes and reads files in the folder, its node too, and another uid neither."""
    node, jail, other = 1234, 231072, 231073
    folder = open_folder / "chip"
    folder.mkdir(mode=0o700)
    os.chown(folder, node, node)

    def as_user(uid: int, work: str) -> bool:
        code = f"import os\nos.setgroups([])\nos.setgid({uid})\nos.setuid({uid})\n"
        code += f"os.chdir({str(folder)!r})\n{work}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        return done.returncode == 0

    assert not as_user(jail, "open('a', 'w')"), "the control"
    identity = Identity(jail, jail, mapped=True)
    pid = os.fork()
    if not pid:
        os.setgid(node)
        os.setuid(node)
        _open_to(folder, identity)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert as_user(jail, "open('a', 'w').write('x'); os.chmod('a', 0o640); os.rename('a', 'b')")
    assert as_user(node, "assert open('b').read() == 'x'; os.unlink('b')")
    assert not as_user(other, "os.listdir()")
    assert not as_user(other, "open('c', 'w')")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can lend another user subordinate ids")
def test_an_ordinary_user_gives_a_state_to_a_subordinate_uid_alone(open_folder: Path) -> None:
    """A file of its own to an id of its own. The controls: another's file, and another's id."""
    folder = open_folder / "given"
    folder.mkdir()
    folder.chmod(0o777)
    names = open_folder / "subids"
    names.write_text("nobody:400000:10\n")
    mine, others = folder / "mine", folder / "others"
    for path, uid in ((mine, 65534), (others, 1)):
        path.write_bytes(b"x")
        os.chown(path, uid, uid)

    def gives(path: Path, uid: int) -> bool:
        bind = "".join(f"mount --bind {names} /etc/{each}; " for each in ("subuid", "subgid"))
        # Not in this checkout, which may lie where another user can't come.
        program = shutil.copy(give.__file__, open_folder / "give.py")
        python = os.path.realpath(sys.executable)
        words = shlex.join([python, "-I", "-S", str(program), str(path), f"{uid}", f"{uid}"])
        user = "setpriv --reuid 65534 --regid 65534 --clear-groups"
        script = f"set -e; touch /etc/subuid /etc/subgid; {bind}exec {user} {words}"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script], capture_output=True, check=False
        )
        return done.returncode == 0

    assert not gives(mine, 400010)
    assert not gives(others, 400003)
    assert gives(mine, 400003)
    assert [mine.stat().st_uid, mine.stat().st_gid, others.stat().st_uid] == [400003, 400003, 1]
