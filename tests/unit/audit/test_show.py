"""What people see of a trail can't act on their terminal, and says what the record says."""

import asyncio
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from skerry.audit.chain import verify
from skerry.audit.read import Position, find_line, follow_lines, read_lines, read_tail
from skerry.audit.record import MAX_LINE, Record, parse_record
from skerry.audit.show import details, summary
from skerry.audit.writer import AuditTrail
from skerry.cli.audit import audit, why
from skerry.errors import NotFound, SkerryError
from skerry.wire.escape import escape

HOSTILE = "\x1b]0;owned\x07\u202eevil\r\n\x9b2J \u0627\u0628 a\u0301 \u3164 \U000e0041 \ud800 \\x1b"


def make(path: Path, *records: tuple[str, Mapping[str, object]]) -> str:
    """Write a trail and return its head."""

    async def main() -> str:
        trail = AuditTrail.open(path)
        for event, fields in records:
            await trail.append(event, fields)
        await asyncio.to_thread(trail.close)
        return trail.head.hash

    return asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a trail of three records, the second a denial."""
    file = tmp_path / "audit.log"
    denial = {
        "allowed": False,
        "code": "STE-NO-SHARED-TYPE",
        "module": "acm",
        "sentence": "no type in common",
        "rule": HOSTILE,
        "subject": "bank-a",
        "target": "bank-b",
        "class": "event",
        "permissions": ["bind"],
        "generation": 3,
        "answers": [{"module": "acm", "allowed": False, "code": "X", "reason": HOSTILE}],
    }
    make(
        file,
        ("allow", {"hook": "bind", "rules": ["acm: yes"]}),
        ("deny", {"hook": "bind", "why": denial}),
        ("ended", {"reason": HOSTILE, "status": -9}),
    )
    return file


def run(command: str, *words: str) -> Result:
    """Run a command of this module."""
    return CliRunner().invoke(why if command == "why" else audit, words)


@given(st.text())
def test_an_escaped_text_is_printable_and_reversible(text: str) -> None:
    """Nothing that moves, reorders, joins or hides is left, and no two texts look the same."""
    shown = escape(text)
    for char in shown:
        assert char.isprintable()
        assert unicodedata.bidirectional(char) not in {"R", "AL", "AN", "RLE", "RLO", "RLI"}
        assert not unicodedata.combining(char)
    back = shown.encode("ascii", "backslashreplace").decode("unicode_escape")
    assert back.encode("utf-8", "surrogatepass") == text.encode("utf-8", "surrogatepass")


def test_plain_text_is_shown_as_it_is() -> None:
    """Letters of any left-to-right script and ASCII signs are not escaped."""
    assert escape("Grüße, 世界 €5 ~") == "Grüße, 世界 €5 ~"
    assert escape(HOSTILE).startswith("\\x1b]0;owned\\x07\\u202eevil\\r\\n\\x9b2J ")


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text()) | st.integers()))
def test_a_summary_is_one_printable_line(fields: dict[str, object]) -> None:
    """Whatever a record holds, its line and the lines of its details are printable."""
    record = Record(1, "t", 1, "", "e\n", fields, "")
    assert summary(record).isprintable()
    assert all(line.isprintable() for line in details(record))


def test_details_show_nested_fields_in_full() -> None:
    """Lists and tables are indented under their names."""
    fields: dict[str, object] = {"a": {"b": [{"c": 1, "d": "x" * 300}, "e"]}, "f": {}}
    assert details(Record(7, "T", 1, "", "deny", fields, "H")) == [
        "record 7: deny",
        "  time: T",
        "  a:",
        "    b:",
        "      - c: 1",
        "        d: " + "x" * 300,
        "      - e",
        "  f: {}",
        "  hash: H",
    ]


def test_tail_shows_the_last_records(path: Path) -> None:
    """`audit tail` prints one line a record, escaped; as JSON the records themselves."""
    shown = run("audit", "tail", "-n", "2", "--file", str(path))
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert [line.split()[0] for line in lines] == ["2", "3"]
    assert all(line.isprintable() for line in lines)
    as_json = run("audit", "tail", "--json", "--file", str(path)).output
    assert as_json == path.read_text()
    assert json.loads(as_json.splitlines()[2])["fields"]["reason"] == HOSTILE


def test_tail_shows_what_is_broken_as_broken(path: Path) -> None:
    """A line that is no record is shown escaped, and does not end the listing."""
    with path.open("ab") as file:
        file.write(b"\x1b[2J\xff\n")
    shown = run("audit", "tail", "-n", "2", "--file", str(path)).output
    assert shown.splitlines()[1] == "broken record: \\x1b[2J\\\\xff"
    as_json = run("audit", "tail", "-n", "1", "--json", "--file", str(path)).output
    assert list(json.loads(as_json)) == ["broken"]


def test_verify_proves_or_names_the_broken_record(path: Path) -> None:
    """`audit verify` exits 0 with count and head, 1 with the number of the broken record."""
    head = parse_record(path.read_bytes().splitlines(keepends=True)[-1]).hash
    good = run("audit", "verify", "--file", str(path), "--head", head.upper())
    assert (good.exit_code, good.output.splitlines()[0]) == (0, f"3 records proven, head {head}")
    assert "no checkpoint was checked" in good.output
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    assert run("audit", "verify", "--file", str(path)).exit_code == 0
    cut = run("audit", "verify", "--file", str(path), "--head", head)
    assert (cut.exit_code, "record 3 is missing" in str(cut.exception)) == (1, True)
    path.write_bytes(lines[0] + lines[1].replace(b"bank-a", b"bank-c") + lines[2])
    bad = run("audit", "verify", "--json", "--file", str(path))
    assert isinstance(bad.exception, SkerryError)
    assert bad.exception.exit_code == 1
    assert "record 2 was altered" in str(bad.exception)
    assert json.loads(bad.output)["broken"] == 2
    assert run("audit", "verify", "--head", "xyz", "--file", str(path)).exit_code == 2


def test_why_explains_a_denial_in_the_words_of_the_refusal(path: Path) -> None:
    """`why` prints the explanation with the record's number, and the record; all escaped."""
    shown = run("why", "2", "--file", str(path))
    assert shown.exit_code == 0
    assert shown.output.startswith("denied: ")
    assert "no type in common [STE-NO-SHARED-TYPE]" in shown.output
    assert "record:     2" in shown.output
    assert all(line.isprintable() for line in shown.output.splitlines())
    assert "acm: yes" in run("why", "1", "--file", str(path)).output
    assert json.loads(run("why", "2", "--json", "--file", str(path)).output)["n"] == 2


def test_why_refuses_what_is_not_there_or_altered(path: Path) -> None:
    """An unknown number, or a record that was changed, is an error and no explanation."""
    for number in ("4", "0", "99999999999999999999"):
        assert isinstance(run("why", number, "--file", str(path)).exception, NotFound)
    path.write_bytes(path.read_bytes().replace(b"bank-a", b"bank-c"))
    assert "altered" in str(run("why", "2", "--file", str(path)).exception)


def test_the_node_s_own_trail_is_the_default(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --file the commands read the trail under the node's home."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path))
    missing = run("audit", "tail").exception
    assert isinstance(missing, NotFound)
    (tmp_path / "state").mkdir()
    path.rename(tmp_path / "state" / "audit.log")
    assert run("audit", "verify").output.startswith("3 records proven")


def test_a_reader_is_bounded_and_sees_a_torn_end(tmp_path: Path) -> None:
    """A line too long comes out cut and broken; a torn end is waited for, then shown."""
    file = tmp_path / "audit.log"
    make(file, ("a", {}))
    good = file.read_bytes()
    file.write_bytes(good + b"x" * (MAX_LINE + 10))
    lines = list(read_lines(file, lambda _: None))
    assert [len(line) for line in lines] == [len(good), MAX_LINE + 1, 9]
    assert verify(lines).broken == 2
    file.write_bytes(good[:-5])

    def finish(_: float) -> None:
        file.write_bytes(good)

    assert list(read_lines(file, finish)) == [good]


def test_tail_reads_across_blocks_and_follow_goes_on(tmp_path: Path) -> None:
    """The last records are found however long they are, and later ones follow without a gap."""
    file = tmp_path / "audit.log"
    make(file, *[("a", {"x": "y" * size}) for size in (10, 50_000, 30_000, 60)])
    whole = file.read_bytes().splitlines(keepends=True)
    position = Position(file.stat().st_ino, len(b"".join(whole)))
    assert read_tail(file, 3) == (whole[1:], position)
    assert read_tail(file, 0)[0] == []
    assert read_tail(file, 9)[0] == whole
    assert find_line(file, 3) == whole[2]
    make(file, ("b", {}), ("c", {}))

    class EnoughError(Exception):
        pass

    def enough(_: float) -> None:
        raise EnoughError

    seen = []
    with pytest.raises(EnoughError):
        for line in follow_lines(file, position, enough):
            seen.append(parse_record(line).event)
    assert seen == ["b", "c"]


def test_a_trail_is_read_only_from_a_regular_file(tmp_path: Path, path: Path) -> None:
    """A link or a folder in its place is refused."""
    link = tmp_path / "link"
    link.symlink_to(path)
    for wrong in (link, tmp_path):
        with pytest.raises(SkerryError, match=r"cannot be read|not a regular file"):
            list(read_lines(wrong))
    assert len(list(read_lines(path))) == 3
