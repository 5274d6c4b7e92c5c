"""TPMs of real machines, by the command line: whose they are, what they prove, and what breaks.

The tests run in their order on one node; each leaves both domains running, `two` with its TPM.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skerry.device.tpm import commands
from tests.support.cli import Cli, left_of
from tests.support.tpm import RANDOM, SYSTEM, extend, register, talk, write_system

WAIT_S = 20.0
ZERO = "0" * 64


@pytest.fixture(scope="module")
def chips() -> Iterator[Cli]:
    """Two domains with a TPM each, running."""
    cli = Cli()
    try:
        cli.ok("up", write_system(cli), "--detach")
        yield cli
    finally:
        cli.down()


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.1)


def swtpms(cli: Cli, name: str = "") -> dict[int, str]:
    """Return the swtpms of a node, without their jails; with a name, that of this TPM."""
    found = cli.processes()
    jails = [pid for pid, words in found.items() if "bwrap" in words and f"/tpm/{name}" in words]
    inside = {child for pid in jails for child in children(pid)}
    return {pid: words for pid, words in found.items() if pid in inside}


def children(pid: int) -> list[int]:
    """Return the processes directly below one."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def uses(cli: Cli) -> dict[str, str]:
    """Return which TPM is used by whom."""
    return {row["sink"]: row["source"] for row in cli.rows("channels") if row["kind"] == "tpm"}


def cuts(cli: Cli) -> list[str]:
    """Return why the last channels were cut."""
    rows = cli.rows("audit", "tail", "-n", "30")
    return [row["fields"]["why"] for row in rows if row["event"] == "cut"]


def again(cli: Cli, name: str) -> None:
    """Stop a domain and start it anew, with its TPM."""
    cli.ok("stop", name)
    cli.ok("start", name)
    until(lambda: commands.answer(talk(cli, name, RANDOM)))


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_guest_has_a_tpm_that_works(chips: Cli, name: str) -> None:
    """It gives eight random bytes, others each time, on a board of either kind."""
    first, second = (commands.answer(talk(chips, name, RANDOM)) for _ in range(2))
    assert len(first) == len(second) == 10
    assert first != second


def test_firmware_measures_where_the_board_has_one_that_does(chips: Cli) -> None:
    """On `pc` the first registers hold what SeaBIOS measured; on a microvm nobody measures."""
    measured = [register(chips, "two", n) for n in (0, 1, 2, 4, 7)]
    assert ZERO not in measured
    assert all(len(value) == 64 for value in measured)
    assert {register(chips, "one", n) for n in (0, 4, 7)} == {ZERO}


def test_a_statement_and_a_quote_prove_each_other(chips: Cli) -> None:
    """Verified without a node or a TPM; another TPM's quote, nonce or key is refused."""
    nonce, other = secrets.token_bytes(20), secrets.token_bytes(20)
    public = str(chips.home / "state/statement.pub")
    files = {}
    for name, over in (("one", nonce), ("two", nonce), ("one", other)):
        path = files[name, over] = chips.home / f"{name}-{over.hex()}"
        path.write_bytes(talk(chips, name, commands.quote(over, (0, 7, 10))))
    statement = str(chips.home / "statement")
    chips.ok("tpm", "statement", "one", "--nonce", nonce.hex(), "--out", statement)

    def verify(name: str, over: bytes, *more: str) -> tuple[int, str]:
        quote = "--quote", str(files[name, over])
        done = chips.run("tpm", "verify", statement, *("--key", public), *quote, *more)
        return done.returncode, done.stdout + done.stderr

    code, said = verify("one", nonce, "--nonce", nonce.hex())
    assert code == 0, said
    assert "domain: one\nlabel: red\n" in said
    assert "quote registers: 0 7 10" in said
    shown = chips.rows("policy", "show")[0]
    assert f"policy: {shown['digest']}\ngeneration: {shown['generation']}\n" in said
    assert "does not hold under the TPM's key" in verify("two", nonce)[1]
    assert "over another nonce" in verify("one", other)[1]
    code, said = verify("one", nonce, "--nonce", other.hex())
    assert code == 1
    assert "it may be an old one" in said
    wrong = chips.run("tpm", "verify", statement, "--key", str(chips.home / "state/audit.pub"))
    assert wrong.returncode == 1
    record = [row for row in chips.rows("audit", "tail", "-n", "40") if row["event"] == "allow"]
    assert nonce.hex() in [row["fields"].get("statement") for row in record]


def test_a_domain_without_a_tpm_gets_no_statement(chips: Cli) -> None:
    """And an unknown domain neither; a nonce that is too short is wrong usage."""
    assert chips.run("tpm", "statement", "nobody", "--nonce", "00" * 8).returncode == 1
    assert chips.run("tpm", "statement", "one", "--nonce", "00" * 7).returncode == 2


def test_the_same_tpm_is_there_after_a_restart_of_the_domain(chips: Cli) -> None:
    """Its attestation key is the same; its registers begin anew, as after a loss of power."""
    before = commands.point_of(talk(chips, "two", commands.read_key()))
    commands.answer(talk(chips, "two", extend(12, b"x" * 32)))
    assert register(chips, "two", 12) != ZERO
    again(chips, "two")
    assert commands.point_of(talk(chips, "two", commands.read_key())) == before
    assert register(chips, "two", 12) == ZERO


def test_a_guest_cannot_start_its_tpm_again(chips: Cli) -> None:
    """So what was extended stays until the domain ends: TPM2_Startup is refused, the rest works."""
    commands.answer(talk(chips, "one", extend(10, b"y" * 32)))
    held = register(chips, "one", 10)
    assert held != ZERO
    with pytest.raises(commands.TpmError, match="0x100"):
        commands.answer(talk(chips, "one", commands.STARTUP))
    commands.answer(talk(chips, "one", commands.SHUTDOWN))
    with pytest.raises(commands.TpmError, match="0x100"):
        commands.answer(talk(chips, "one", commands.STARTUP))
    assert register(chips, "one", 10) == held


def test_the_key_is_nowhere_but_in_its_file(chips: Cli) -> None:
    """Not in any process's command line or environment, nor plain in the state. The control: it
    is found in its own file, and a word of the command line where it is looked for."""
    keys = [path.read_text() for path in (chips.home / "state/keys").iterdir()]
    assert [len(key) for key in keys] == [64, 64]
    seen = b""
    for pid in chips.processes():
        with contextlib.suppress(OSError):
            for part in ("cmdline", "environ"):
                seen += Path(f"/proc/{pid}/{part}").read_bytes()
    assert b"format=hex" in seen, "the control"
    states = [p.read_bytes() for p in (chips.home / "tpm").glob("*/*") if p.is_file()]
    assert len(states) >= 2
    for key in keys:
        assert key.encode() not in seen
        assert all(key.encode() not in text and bytes.fromhex(key) not in text for text in states)


def test_a_second_domain_is_refused_the_tpm(chips: Cli) -> None:
    """Though the policy allows it: the TPM is the first's, as the trail says. The domain runs."""
    chips.ok("kill", "one")
    third = SYSTEM + '\n[domains.three]\nlabel = "red"\nuses = ["chip"]\n'
    system = write_system(chips, third)
    done = chips.run("up", system)
    assert "the TPM chip belongs to domain one, not to three" in done.stdout + done.stderr
    denied = [row for row in chips.rows("audit", "tail", "-n", "40") if row["event"] == "deny"]
    assert "TPM-OWNED" in [row["fields"]["why"]["code"] for row in denied]
    assert "tpm0" not in chips.ok("exec", "three", "--", "ls", "/dev")
    assert uses(chips) == {"chip": "one", "other": "two"}, "the control: the owner gets it"
    chips.ok("kill", "three")
    chips.ok("up", write_system(chips))


def test_a_tpm_cannot_be_given_to_a_running_domain(chips: Cli) -> None:
    """It is there from the start or not at all, and the refusal says so."""
    done = chips.run("connect", "two", "chip")
    assert done.returncode == 1
    assert "from its start on or not at all" in done.stderr
    assert uses(chips) == {"chip": "one", "other": "two"}


def test_a_killed_service_interrupts_nothing(chips: Cli) -> None:
    """TPM, register and key go on under the next service, which can state and cut as well."""
    commands.answer(talk(chips, "one", extend(11, b"z" * 32)))
    held, running = register(chips, "one", 11), swtpms(chips)
    assert len(running) == 2
    (service,) = (
        pid
        for pid, words in chips.processes().items()
        if "-m skerry.control.service" in words and "skerry.supervisor.main" not in words
    )
    os.kill(service, signal.SIGKILL)
    until(lambda: service not in chips.processes())
    until(lambda: chips.run("ps").returncode == 0)
    assert swtpms(chips) == running
    assert uses(chips) == {"chip": "one", "other": "two"}
    assert register(chips, "one", 11) == held
    nonce = secrets.token_hex(8)
    signed = chips.rows("channels")  # the next service answers
    assert signed
    assert nonce in chips.ok("tpm", "statement", "one", "--nonce", nonce)


def test_a_flooding_guest_is_no_ones_trouble_but_its_own(chips: Cli) -> None:
    """While it sends commands without end the other TPM answers, and the node does at once."""
    flood = "while :; do cat /sys/class/tpm/tpm0/pcr-sha256/*; done > /dev/null 2>&1 &"
    chips.ok("exec", "one", "--", "sh", "-c", f"({flood}) & echo $! > /tmp/flood")
    begin = time.monotonic()
    for _ in range(5):
        commands.answer(talk(chips, "two", RANDOM))
        chips.ok("ps")
    assert time.monotonic() - begin < WAIT_S
    again(chips, "one")


def test_a_frozen_swtpm_holds_its_guests_command_and_nothing_else(chips: Cli) -> None:
    """The domain's processors run, QEMU and node answer; thawed, the command is answered."""
    (pid,) = swtpms(chips, "chip")
    os.kill(pid, signal.SIGSTOP)
    try:
        read = "cat /sys/class/tpm/tpm0/pcr-sha256/0 > /tmp/read; echo done > /tmp/done"
        chips.ok("exec", "one", "--", "sh", "-c", f"rm -f /tmp/done; ({read}) > /dev/null 2>&1 &")
        time.sleep(1)
        assert chips.run("exec", "one", "--", "cat", "/tmp/done").returncode != 0
        chips.ok("pause", "one")
        chips.ok("resume", "one")
        chips.ok("exec", "one", "--", "true")
        commands.answer(talk(chips, "two", RANDOM))
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: chips.run("exec", "one", "--", "cat", "/tmp/done").returncode == 0)
    assert len(chips.ok("exec", "one", "--", "cat", "/tmp/read").strip()) == 64


def test_a_killed_swtpm_is_an_error_in_the_guest_and_a_cut_in_the_trail(chips: Cli) -> None:
    """The domain lives on; no command's answer says success; a start brings it back."""
    point = commands.point_of(talk(chips, "one", commands.read_key()))
    (pid,) = swtpms(chips, "chip")
    os.kill(pid, signal.SIGKILL)
    until(lambda: "chip" not in uses(chips))
    assert "its relay or helper has ended" in cuts(chips)
    assert register(chips, "one", 0) == ""
    with pytest.raises(commands.TpmError):
        commands.answer(talk(chips, "one", RANDOM))
    assert chips.run("tpm", "statement", "one", "--nonce", "00" * 8).returncode == 1
    chips.ok("exec", "one", "--", "true")
    again(chips, "one")
    assert commands.point_of(talk(chips, "one", commands.read_key())) == point


def test_a_cut_takes_the_tpm_at_once(chips: Cli) -> None:
    """Its swtpm ends and the guest gets an error; the domain lives on."""
    (number,) = [row["id"] for row in chips.rows("channels") if row["sink"] == "chip"]
    before = swtpms(chips, "chip")
    chips.ok("cut", str(number))
    with pytest.raises(commands.TpmError):
        commands.answer(talk(chips, "one", RANDOM))
    until(lambda: left_of(before) == {})
    again(chips, "one")


def _flip(content: bytes) -> bytes:
    return content[:700] + bytes([content[700] ^ 1]) + content[701:]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda home: None, id="control"),
        pytest.param(lambda home: (home / "tpm/chip/tpm2-00.permall").unlink(), id="missing"),
        pytest.param(lambda home: _write(home, _flip), id="flipped"),
        pytest.param(lambda home: (home / "state/tpm/chip").unlink(), id="no-record"),
    ],
)
def test_a_spoiled_state_is_refused_and_never_a_fresh_tpm(
    chips: Cli, spoil: Callable[[Path], object]
) -> None:
    """One line says what is wrong; the domain runs without; put back, it is the same TPM."""
    point = commands.point_of(talk(chips, "one", commands.read_key()))
    chips.ok("stop", "one")
    home = chips.home
    files = [home / "tpm/chip/tpm2-00.permall", home / "state/keys/tpm-chip"]
    files.append(home / "state/tpm/chip")
    whole = {path: path.read_bytes() for path in files}
    spoil(home)
    spoiled = any(not p.exists() or p.read_bytes() != content for p, content in whole.items())
    done = chips.run("start", "one")
    said = done.stdout + done.stderr
    assert ("chip" in uses(chips)) is not spoiled, said
    assert ("the TPM chip" in said) is spoiled, said
    if spoiled:
        assert "tpm0" not in chips.ok("exec", "one", "--", "ls", "/dev")
        chips.ok("kill", "one")
        for path, content in whole.items():
            path.write_bytes(content)
        chips.ok("start", "one")
    until(lambda: commands.answer(talk(chips, "one", RANDOM)))
    assert commands.point_of(talk(chips, "one", commands.read_key())) == point


def _write(home: Path, change: Callable[[bytes], bytes]) -> None:
    path = home / "tpm/chip/tpm2-00.permall"
    path.write_bytes(change(path.read_bytes()))


def test_down_leaves_no_swtpm_and_the_next_up_has_the_same_tpm(chips: Cli) -> None:
    """Everything that was started ends; a new life of the node goes on with what was kept."""
    point = commands.point_of(talk(chips, "one", commands.read_key()))
    before = chips.processes()
    assert swtpms(chips), "the control"
    chips.ok("down")
    until(lambda: left_of(before) == {})
    chips.ok("audit", "verify")
    chips.ok("up", str(chips.home / "system.toml"), "--detach")
    assert commands.point_of(talk(chips, "one", commands.read_key())) == point
