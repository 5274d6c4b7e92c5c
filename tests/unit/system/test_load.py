"""What a system file may say, and how its mistakes are reported."""

import os
import pwd
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import InputError
from skerry.jail.confinement import LAYERS
from skerry.system.load import MAX_FILE, load_system, parse_system
from skerry.system.model import (
    AUDIT_KEEP,
    AUDIT_ROTATE,
    JAIL_LAYERS,
    MAX_CHANNELS,
    MAX_DOMAINS,
    Assertion,
    Audit,
    ChannelSpec,
    DomainSpec,
    System,
)

FILE = Path("/srv/x/system.toml")

GOOD = """\
name = "two-banks"
policy = "policy.xml"

[domains.broker]
label = "broker"
memory = "256M"
cpus = 2
board = "q35"
accel = "tcg"
machine = "simulator"
autostart = false

[domains.bank-a]
label = { acm = "bank-a", flask = "u:r:t" }

[[channels]]
kind = "stream"
from = "bank-a"
to = "broker"
name = "orders"
one-way = false
overflow = "block"

[[assert]]
never = "bank-a -> broker"
except = []

[jail]
accept-missing = ["uid", "cgroup"]

[operators]
"uid:4000000000" = "owner"
root = { acm = "admin" }

[limits]
channels = 10
"""


def problems(text: str) -> list[str]:
    """Return the problems of a text that is no good system."""
    with pytest.raises(InputError) as caught:
        parse_system(text, FILE)
    return [f"{p.line}: {p.message}" for p in caught.value.problems]


def changed(*changes: tuple[str, str]) -> str:
    """Return the good file with some of its text replaced."""
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def test_a_good_file_becomes_a_system() -> None:
    """Every field of the file arrives, with defaults where the file says nothing."""
    system = parse_system(GOOD, FILE)
    assert system.name == "two-banks"
    assert system.policy == ("/srv/x/policy.xml",)
    assert system.domains == {
        "broker": DomainSpec(
            "broker", "broker", "minimal", 256 << 20, 2, "q35", "tcg", "simulator", False
        ),
        "bank-a": DomainSpec("bank-a", {"acm": "bank-a", "flask": "u:r:t"}),
    }
    assert system.domains["bank-a"].memory == 192 << 20
    assert system.channels == (ChannelSpec("stream", "bank-a", "broker", "orders"),)
    assert system.asserts == (Assertion("bank-a", "broker"),)
    assert system.accept_missing == ("uid", "cgroup")
    assert system.operators == {4000000000: "owner", 0: {"acm": "admin"}}
    assert (system.limits.channels, system.limits.domains) == (10, MAX_DOMAINS)
    assert MAX_CHANNELS > 10
    assert system.audit == Audit(AUDIT_ROTATE, AUDIT_KEEP)
    written = parse_system(GOOD + '[audit]\nrotate = "2M"\nkeep = 3\n', FILE)
    assert written.audit == Audit(2 << 20, 3)


def test_a_system_knows_the_lines_of_its_parts() -> None:
    """Whoever checks labels against the policy can name their lines."""
    system = parse_system(GOOD, FILE)
    rows = GOOD.split("\n")
    assert rows[system.line(("domains", "bank-a", "label")) - 1].startswith("label = { acm")
    assert rows[system.operator_line(0) - 1].startswith("root")


def test_lines_do_not_make_parts_different() -> None:
    """A domain that only moved in the file is equal to itself."""
    moved = parse_system("\n\n" + GOOD, FILE)
    assert moved.domains == parse_system(GOOD, FILE).domains


def test_policies_are_paths_beside_the_file_or_dummy() -> None:
    """A list is several policies; the word dummy is no file, but ./dummy is."""
    text = changed(('"policy.xml"', '["dummy", "/etc/p.toml", "./dummy"]'))
    assert parse_system(text, FILE).policy == ("dummy", "/etc/p.toml", "/srv/x/dummy")


def test_all_mistakes_are_reported_at_once() -> None:
    """One reading reports every mistake of a file, in the order of its lines."""
    text = changed(
        ('label = "broker"', 'lable = "broker"'),
        ('memory = "256M"', "memory = 256"),
        ('to = "broker"', 'to = "brokr"'),
        ('"uid", "cgroup"', '"uid", "cgruop"'),
    )
    assert problems(text) == [
        "4: missing key 'label' in domains.broker; write label = \"a label of the policy\"",
        "5: unknown key 'lable' in domains.broker; did you mean 'label'?",
        '6: memory must be a size with its unit (K, M, G), like "192M", not 256',
        "19: no domain 'brokr'; did you mean 'broker'?",
        "29: no layer 'cgruop'; did you mean 'cgroup'?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "two-banks"\n', "", "0: missing key 'name'"),
        ('name = "two-banks"', 'name = "Two"', "1: name must be 1 to 31"),
        ('name = "two-banks"', "name = 7", "1: name must be 1 to 31"),
        ('"policy.xml"', "[]", "2: policy must name 1 to 8 files"),
        ('"policy.xml"', '""', "2: policy must name files"),
        ('"policy.xml"', '["a", "a"]', "2: policy names 'a' twice"),
        ('"policy.xml"', '["a", 1]', "2: policy must hold texts, not 1"),
        ("[domains.bank-a]", "[domains.bank_a]", "13: a domain's name must be"),
        ("[domains.broker]", "[domains.Broker]", "4: a domain's name must be"),
        ("[domains.broker]", "[domain.broker]", "4: unknown key 'domain'; did you mean 'domains'?"),
        ('label = "broker"', 'label = ""', "5: the label domains.broker.label must be"),
        ('label = "broker"', 'label = "a\\u202e"', "5: the label domains.broker.label must be"),
        ('label = "broker"', "label = {}", "5: the label domains.broker.label must be"),
        ('label = "broker"', "label = { acm = 1 }", "5: the label domains.broker.label must be"),
        ('"256M"', '"63M"', "6: memory must be from 64M to 1T, not 63M"),
        ('"256M"', '"2T"', "6: memory must be from 64M to 1T, not 2T"),
        ('"256M"', '"256"', "6: memory must be a size with its unit"),
        ('"256M"', '"256MB"', "6: memory must be a size with its unit"),
        ("cpus = 2", "cpus = 0", "7: cpus must be a number from 1 to 64, not 0"),
        ("cpus = 2", "cpus = true", "7: cpus must be a number from 1 to 64, not True"),
        ('"q35"', '"q36"', '8: board must be "auto", "microvm", "q35" or "pc", not \'q36\''),
        ("autostart = false", 'autostart = "no"', "11: autostart must be true or false"),
        ('kind = "stream"', 'kind = "steam"', "17: kind must be"),
        ('from = "bank-a"', 'from = "broker"', "19: a channel needs two domains"),
        ('from = "bank-a"', 'from = ["bank-a"]', "18: no domain a list"),
        ('name = "orders"', 'name = "skerry.x"', "20: name must be 1 to 31"),
        ('name = "orders"', 'name = "Orders"', "20: name must be 1 to 31"),
        ('overflow = "block"', 'overflow = "drop"', '22: overflow = "drop" goes with one-way'),
        ("[[channels]]", "[channels]", "16: channels must be written [[channels]]"),
        ('never = "bank-a -> broker"', 'never = "bank-a"', '25: never must be "A -> B"'),
        ('never = "bank-a -> broker"', 'never = ", -> broker"', '25: never must be "A -> B"'),
        ('never = "bank-a -> broker"', 'never = "a -> b -> c"', '25: never must be "A -> B"'),
        ("except = []", 'except = [" , "]', "26: except names nothing in ' , '"),
        ('"uid", "cgroup"', '"walls"', "29: no layer 'walls'; the layers are: uid,"),
        ('"uid:4000000000"', '"uid:01"', "32: no user 'uid:01' on this host"),
        ('"uid:4000000000"', '"uid:4294967295"', "32: no user 'uid:4294967295' on this host"),
        ('"uid:4000000000"', '"no-such-user"', "32: no user 'no-such-user' on this host"),
        ('"uid:4000000000"', '"a\\u0000b"', "32: no user"),
        ('"uid:4000000000"', '"uid:0"', "33: 'root' and 'uid:0' are the same user, uid 0"),
        ("channels = 10", "channels = 0", "16: 1 channels, limits.channels is 0"),
        ("channels = 10", "domains = 1", "4: 2 domains, but limits.domains is 1"),
        ("channels = 10", "channels = -1", "36: channels must be a number from 0"),
        ("[limits]\nchannels = 10", '[audit]\nrotate = "1K"', "36: rotate must be from 1M to 1T"),
        ("[limits]\nchannels = 10", "[audit]\nrotate = 1", "36: rotate must be a size with"),
        ("[limits]\nchannels = 10", "[audit]\nkeep = 0", "36: keep must be a number from 1 to"),
        ("[limits]\nchannels = 10", "[audit]\nkep = 2", "36: unknown key 'kep' in audit; did"),
        ("[limits]", "[limts]", "35: unknown key 'limts'; did you mean 'limits'?"),
    ],
)
def test_each_mistake_is_named_at_its_line(old: str, new: str, expected: str) -> None:
    """A single mistake gives a single problem, with its line and what to write instead."""
    found = problems(changed((old, new)))
    if old not in ("[domains.broker]", "[domains.bank-a]", "[[channels]]"):
        assert len(found) == 1
    assert any(problem.startswith(expected) for problem in found), found


def test_a_port_name_is_unique_in_a_domain_only() -> None:
    """Two channels may share a port name unless they share a domain."""
    third = '\n[domains.c]\nlabel = "c"\n[domains.d]\nlabel = "d"\n'
    channel = '[[channels]]\nkind = "stream"\nfrom = "{}"\nto = "{}"\nname = "orders"\n'
    apart = GOOD + third + channel.format("c", "d")
    assert len(parse_system(apart, FILE).channels) == 2
    shared = GOOD + third + channel.format("c", "broker")
    assert problems(shared) == ["46: domain 'broker' has two ports named 'orders'"]


def test_a_user_name_is_resolved_on_this_host() -> None:
    """An operator named by a user name is that user's uid."""
    user = pwd.getpwuid(os.getuid()).pw_name
    text = changed(('"uid:4000000000"', f'"{user}"'), ("root = ", '"uid:12345" = '))
    assert os.getuid() in parse_system(text, FILE).operators


def test_the_file_itself_is_checked_before_it_is_read(tmp_path: Path) -> None:
    """A FIFO, a device, a directory, a missing, long or binary file are each refused at once."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    long, binary, good = tmp_path / "long", tmp_path / "binary", tmp_path / "good"
    long.write_bytes(b"#" * (MAX_FILE + 1))
    binary.write_bytes(b"\n\n\xff")
    good.write_text(GOOD)
    for path, words in [
        (fifo, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "not a regular file|Is a directory"),
        (tmp_path / "none", "No such file"),
        (long, f"longer than {MAX_FILE} bytes"),
        (binary, "binary:3: not UTF-8"),
        (Path("a\0b"), "not a file name"),
    ]:
        with pytest.raises(InputError, match=words):
            load_system(path)
    assert load_system(good).name == "two-banks"


TREES = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text(max_size=5), st.floats()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


PLACES = (
    "name",
    "policy",
    "domains",
    "channels",
    "assert",
    "jail",
    "operators",
    "limits",
    "audit",
    "x",
)


@given(st.dictionaries(st.sampled_from(PLACES), TREES, max_size=4))
def test_any_toml_is_a_system_or_a_list_of_problems(tree: dict[str, object]) -> None:
    """Whatever values stand in the file, reading ends in a `System` or an `InputError`."""
    text = "\n".join(f"{key} = {_toml(value)}" for key, value in tree.items())
    tomllib.loads(text)
    try:
        assert isinstance(parse_system(text, FILE), System)
    except InputError as error:
        assert all(p.message.isprintable() for p in error.problems)


def test_the_layers_of_the_jail_are_those_that_can_be_accepted() -> None:
    """The system file knows exactly the layers that the jail has, and the host's swap."""
    assert (*LAYERS, "swap") == JAIL_LAYERS


@pytest.mark.parametrize(
    "line", ["cpus = 0x" + "f" * 5000, "memory = 0x" + "f" * 5000, "cpus = " + "9" * 5000]
)
def test_a_number_of_thousands_of_digits_is_a_mistake_in_words(line: str) -> None:
    """Python refuses to write such a number; that is no reason to end with a traceback."""
    with pytest.raises(InputError):
        parse_system(f'name = "x"\npolicy = "p"\n[domains.a]\nlabel = "x"\n{line}\n', FILE)


def test_guessing_what_was_meant_takes_no_time_where_there_is_much_to_guess() -> None:
    """Thousands of wrong names among thousands are all reported, without a guess."""
    domains = "".join(f'[domains.d{i}]\nlabel = "x"\n' for i in range(4000))
    end = 'to = "d1"\nkind = "stream"\n'
    wrong = "".join(f'[[channels]]\nfrom = "d{i}x"\nname = "p{i}"\n{end}' for i in range(1000))
    before = time.monotonic()
    with pytest.raises(InputError) as caught:
        parse_system(f'name = "x"\npolicy = "p"\n{domains}{wrong}', FILE)
    assert len(caught.value.problems) > 1000
    assert time.monotonic() - before < 5
