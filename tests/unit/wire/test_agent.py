"""The agent's protocol: exact messages or an error, whatever a guest sends."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import SkerryError, WireError
from skerry.wire import agent

NONCE = "0123456789012345"
HELLO = f"hello 1 {NONCE}\n".encode()


def greeted() -> agent.Parser:
    """Return a parser that has seen its hello."""
    parser = agent.Parser(NONCE)
    assert parser.feed(HELLO) == [agent.Hello()]
    return parser


def line(verb: str, data: bytes) -> bytes:
    """Return one output line as the guest writes it."""
    return f"{verb} 00000007 {base64.b64encode(data).decode()}\n".encode()


def test_output_and_exit_are_parsed() -> None:
    """The three messages of a running command come out as they went in."""
    sent = line("out", b"a\0b") + line("err", b"e") + b"exit 00000007 137\n"
    assert greeted().feed(sent) == [
        agent.Output(7, "out", b"a\0b"),
        agent.Output(7, "err", b"e"),
        agent.Exit(7, 137),
    ]


@given(
    st.lists(st.tuples(st.sampled_from(["out", "err"]), st.binary(min_size=1, max_size=3000))),
    st.data(),
)
def test_any_split_gives_the_same_messages(
    pieces: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    """Where the stream happens to be cut changes nothing."""
    stream = HELLO + b"".join(line(verb, payload) for verb, payload in pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser = agent.Parser(NONCE)
    messages: list[agent.Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        messages += parser.feed(stream[start:end])
    assert [(m.stream, m.untrusted_data) for m in messages if isinstance(m, agent.Output)] == pieces


@given(st.lists(st.binary(max_size=200) | st.sampled_from([HELLO, b"out ", b"00000001 ", b"\n"])))
def test_garbage_is_messages_or_a_wire_error(chunks: list[bytes]) -> None:
    """No input makes the parser do anything else than answer or refuse."""
    parser = agent.Parser(NONCE)
    try:
        for chunk in chunks:
            for message in parser.feed(chunk):
                assert isinstance(message, agent.Hello | agent.Output | agent.Exit)
    except WireError:
        pass


@pytest.mark.parametrize(
    "untrusted",
    [
        b"\n",
        b"out 00000007\n",
        b"out 7 YQ==\n",
        b"out 00000007 YQ=\n",
        b"out 00000007 YQ==YQ==\n",
        b"out 00000007  YQ==\n",
        b"out 00000007 YQ==\r\n",
        b"OUT 00000007 YQ==\n",
        b"exit 00000007 256\n",
        b"exit 00000007 -1\n",
        b"exit 00000007 1 \n",
        b"label 00000007 YQ==\n",
        "exit 00000007 \u0661\n".encode(),
        HELLO,
        line("out", b"x" * (agent.CHUNK_MAX + 1)),
        b"x" * agent.LINE_MAX,
    ],
)
def test_anything_but_a_message_is_refused(untrusted: bytes) -> None:
    """Unknown, malformed and oversized lines end the connection; the exact form does not."""
    assert greeted().feed(line("out", b"x" * agent.CHUNK_MAX) + b"exit 00000007 0\n")
    with pytest.raises(WireError):
        greeted().feed(untrusted)


def test_an_error_shows_the_guests_words_escaped_and_short() -> None:
    """What a guest sends can't reach the operator's terminal raw through an error."""
    with pytest.raises(WireError) as caught:
        greeted().feed(b"\x1b[2J" + b"y" * 1000 + b"\n")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 120


def test_lines_of_an_earlier_host_are_dropped_until_the_hello() -> None:
    """A new host finds its place in the stream, in the middle of a line or of a flood."""
    parser = agent.Parser(NONCE)
    for _ in range(100):
        assert parser.feed(b"Zm9v" * 3000) == []
    assert parser.feed(b"\nexit 00000001 0\nhello 1 9999999999999999\n") == []
    assert parser.feed(HELLO + b"exit 00000002 0\n") == [agent.Hello(), agent.Exit(2, 0)]


def test_a_guest_that_only_floods_is_given_up() -> None:
    """What is dropped before the hello is bounded."""
    parser = agent.Parser(NONCE)
    with pytest.raises(WireError, match="does not answer"):
        for _ in range(agent.STALE_MAX // 4096 + 2):
            parser.feed(b"x" * 4095 + b"\n")


def test_another_version_is_named() -> None:
    """An agent of another version is refused in words that say what to do."""
    with pytest.raises(WireError, match=r"version 2, not 1.*build the image"):
        agent.Parser(NONCE).feed(f"hello 2 {NONCE}\n".encode())


@given(st.binary(max_size=20_000), st.lists(st.text("a' \n$", min_size=0), min_size=1))
def test_a_command_is_bounded_lines_that_hold_all_of_it(stdin: bytes, argv: list[str]) -> None:
    """Every line keeps the bound, and the pieces put together are the input."""
    lines = list(agent.command(5, argv, stdin))
    assert all(len(one) <= agent.LINE_MAX and one.endswith(b"\n") for one in lines)
    assert lines[-1] == b"run 00000005\n"
    assert all(re.fullmatch(rb"[a-z]+ 00000005( [^ \n]+)?\n", one) for one in lines)
    sent = [one.split() for one in lines[:-1]]
    assert base64.b64decode(b"".join(s[2] for s in sent if s[0] == b"stdin")) == stdin


@pytest.mark.parametrize(
    ("argv", "stdin"),
    [
        ([], b""),
        (["a\0b"], b""),
        (["x" * agent.ARGV_MAX + "x"], b""),
        (["a"], bytes(1 + (1 << 20))),
    ],
)
def test_a_command_beyond_its_bounds_is_refused_before_the_first_line(
    argv: list[str], stdin: bytes
) -> None:
    """Nothing is sent of a command that can't be sent as a whole."""
    with pytest.raises(SkerryError):
        agent.command(5, argv, stdin)
