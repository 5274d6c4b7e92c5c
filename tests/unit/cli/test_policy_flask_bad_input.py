"""Policy files that are damaged, hostile or not for us: one clear error each, exit 2."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from skerry.cli.main import cli
from skerry.errors import InputError
from tests.support import policies
from tests.support.cli import SKERRY

ONE = "system_u:system_r:domU_t"
COMMANDS = ("check", "show --policy", "diff", "decide --policy")


def words_for(command: str, file: Path) -> list[str]:
    """Return the command line that makes a command read a file."""
    more = {"diff": [str(policies.xen())], "decide --policy": [ONE, ONE, "grant"]}
    return ["policy", *command.split(), str(file), *more.get(command, [])]


def refusal(file: Path, command: str = "check") -> str:
    """Return the one mistake that a command finds in a file; it must end with 2."""
    result = CliRunner().invoke(cli, words_for(command, file))
    assert isinstance(result.exception, InputError), (result.exception, result.output)
    assert result.exception.exit_code == 2
    (found,) = result.exception.problems
    assert found.file == str(file)
    assert result.stdout == ""
    return found.message


@pytest.fixture
def xen() -> bytes:
    """Xen's default policy."""
    return policies.xen().read_bytes()


def file_of(folder: Path, content: bytes) -> Path:
    """Write a policy file."""
    path = folder / "policy"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_truncated_policy(tmp_path: Path, xen: bytes, command: str) -> None:
    """One line with the offset; the whole file is the control."""
    message = refusal(file_of(tmp_path, xen[: len(xen) // 2]), command)
    assert message.startswith("damaged policy at offset ")
    whole = file_of(tmp_path, xen)
    assert CliRunner().invoke(cli, words_for(command, whole)).exit_code in (0, 3)


def test_a_policy_cut_off_anywhere_is_an_error_with_the_offset(tmp_path: Path, xen: bytes) -> None:
    """At a hundred places, the first bytes and the last included."""
    for length in [*range(4, 40), *range(40, len(xen), len(xen) // 64), len(xen) - 1]:
        assert "at offset" in refusal(file_of(tmp_path, xen[:length]))


def test_what_follows_the_end_is_an_error(tmp_path: Path, xen: bytes) -> None:
    """Two policies in one file are none."""
    assert "1 bytes follow the end" in refusal(file_of(tmp_path, xen + b"\0"))


def test_a_flipped_bit_is_an_error_or_leaves_a_policy(tmp_path: Path, xen: bytes) -> None:
    """Nothing else may come of it: no traceback, no second error, no other exit code."""
    chance = random.Random(7)
    refused = 0
    for _ in range(150):
        place, bit = chance.randrange(len(xen)), chance.randrange(8)
        changed = bytearray(xen)
        changed[place] ^= 1 << bit
        result = CliRunner().invoke(cli, words_for("check", file_of(tmp_path, bytes(changed))))
        if result.exit_code:
            assert isinstance(result.exception, InputError), (place, bit)
            assert len(result.exception.problems) == 1
            refused += 1
    assert 0 < refused < 150


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (b"SE Linux", "at offset"),
        (b"SELinux!", "the target is b'SELinux!'; known are SE Linux and XenFlask"),
        (b"xenflask", "known are SE Linux and XenFlask"),
    ],
)
def test_a_wrong_target_is_an_error(tmp_path: Path, xen: bytes, target: bytes, words: str) -> None:
    """One that is unknown, and one that the rest of the file does not fit."""
    assert xen[8:16] == b"XenFlask"
    assert words in refusal(file_of(tmp_path, xen[:8] + target + xen[16:]))


@pytest.mark.parametrize("version", [0, 15, 23, 34, 35, 0xFFFFFFFF])
def test_a_wrong_version_is_an_error_that_names_those_that_are_read(
    tmp_path: Path, xen: bytes, version: int
) -> None:
    """Older, newer and absurd ones."""
    changed = xen[:16] + struct.pack("<I", version) + xen[20:]
    assert f"version {version}; 24 to 33 are read" in refusal(file_of(tmp_path, changed))


def test_counts_that_promise_gigabytes_are_refused_unread(tmp_path: Path, xen: bytes) -> None:
    """Every number of the file in turn is the highest there is: no memory is taken for it."""
    for offset in range(16, 400, 4):
        changed = xen[:offset] + b"\xff\xff\xff\x7f" + xen[offset + 4 :]
        result = CliRunner().invoke(cli, words_for("check", file_of(tmp_path, changed)))
        assert result.exit_code == 0 or isinstance(result.exception, InputError), offset
    # The control: the number of classes' values, right after the header and two empty sets.
    assert struct.unpack_from("<I", xen, 16) == (30,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\x8c\xff\x7c\xf9", "at offset 4"),
        (b"\xf9\x7c\xff\x8c\x00\x00\x00\x08XenFlask", "nor XML nor TOML"),
        (b"\x8f\xff\x7c\xf9\x01\x00\x00\x00", "compiled policy module"),
        (b"BZh91AY&SY\0\0", "nor XML nor TOML"),
        (b"policy_module(guests, 1.0)\n", "a part of a policy"),
        (b"class domain\nnonsense\n", "syntax error"),
        (b"(nonsense", "parenthesis"),
    ],
)
def test_what_is_no_policy_is_named_for_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    """Empty, only a header, of another byte order, a module, packed, text with mistakes."""
    assert words in refusal(file_of(tmp_path, content))


def test_the_command_prints_one_line_and_ends_with_2(tmp_path: Path, xen: bytes) -> None:
    """As a user sees it: nothing on the output, the file and the reason on standard error."""
    path = file_of(tmp_path, xen[:5000])
    words = [str(SKERRY), *words_for("check", path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {path}: damaged policy at offset ")
