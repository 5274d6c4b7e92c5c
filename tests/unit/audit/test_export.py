"""The export line by line: its exact form, its escaping, its bounds, and what it leaves out."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from skerry.audit import export as export_module
from skerry.audit.export import MAX_AVC_LINE, MAX_AVC_NAME, MAX_DOMIDS, AvcExport, untrusted
from skerry.audit.record import Record, RecordError
from skerry.audit.writer import AuditTrail
from skerry.cli.audit import audit, why
from skerry.errors import SkerryError

GUEST, OTHER = "system_u:system_r:domU_t:s0:c1,c2", "system_u:system_r:isolated_domU_t:s0"


def vector(**changes: object) -> dict[str, object]:
    """Return one access vector as the monitor records it."""
    return {
        "refused": True,
        "permissions": ["map_read", "map_write"],
        "scontext": GUEST,
        "tcontext": OTHER,
        "tclass": "grant",
        "permissive": False,
        "subject": "source",
        "target": "sink",
    } | changes


def record(**changes: object) -> Record:
    """Return a record of a refused stream."""
    fields: dict[str, object] = {
        "hook": "channel_two_way",
        "source": "bank-a",
        "sink": "bank-b",
        "port": "orders",
        "avc": [vector()],
    }
    return Record(35, "2024-10-31T19:25:38.246999Z", 1, "", "deny", fields | changes, "")


def run(file: Path, *words: str) -> Result:
    """Run `audit export` on a file."""
    return CliRunner().invoke(audit, ["export", "--file", str(file), *words])


def write(file: Path, *records: tuple[str, Mapping[str, object]]) -> list[bytes]:
    """Write a trail and return its lines."""

    async def main() -> None:
        trail = AuditTrail.open(file)
        for event, fields in records:
            await trail.append(event, fields)
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    return file.read_bytes().splitlines(keepends=True)


def test_a_refusal_is_a_user_avc_record_byte_for_byte() -> None:
    """Two blanks stand after `avc:`, after `denied` and after `for`; the serial is the record's."""
    assert list(AvcExport().lines(record())) == [
        "type=USER_AVC msg=audit(1730402738.246:35): pid=0 uid=4294967295 auid=4294967295"
        " ses=4294967295 subj=? msg='avc:  denied  { map_read map_write } for  op=channel_two_way"
        ' source="bank-a" target="bank-b" name="orders" scontext=system_u:system_r:domU_t:s0:c1,c2'
        " tcontext=system_u:system_r:isolated_domU_t:s0 tclass=grant permissive=0"
        ' exe="skerry" sauid=4294967295 hostname=? addr=? terminal=?\''
    ]


def test_a_refusal_in_xen_s_form_byte_for_byte() -> None:
    """Domains are numbered as they come up, the operator is domain 0."""
    writer = AvcExport(xen=True)
    by_operator = vector(subject="operator", target="domain", permissive=True)
    vectors = [vector(), vector(subject="sink->source", target="source"), by_operator]
    lines = list(writer.lines(record(avc=vectors, domain="bank-c")))
    query = f"scontext={GUEST} tcontext={OTHER} tclass=grant"
    what = "(XEN) avc:  denied  { map_read map_write } for"
    assert lines == [
        f"{what} source=d1 target=d2 {query}",
        f"{what} source=d2 target=d1 {query}",
        f"{what} source=d0 target=d3 {query}",
    ]
    assert writer.domains == {"bank-a": 1, "bank-b": 2, "bank-c": 3}


def test_a_grant_that_the_policy_marks_says_granted() -> None:
    """A grant has no `permissive`, as in the kernel's log."""
    granted = vector(refused=False, permissions=["pause"], tclass="domain")
    (line,) = AvcExport().lines(record(avc=[granted]))
    assert "msg='avc:  granted  { pause } for  op=" in line
    assert "permissive" not in line


def _fields(line: str) -> list[str]:
    """Split a line as audit's tools do: at blanks."""
    return [part.partition("=")[0] for part in line.split(" ") if "=" in part]


@given(st.text(), st.text(), st.text(), st.text())
def test_no_text_ends_a_line_closes_a_quote_or_adds_a_field(
    name: str, context: str, tclass: str, port: str
) -> None:
    """Whatever names, contexts and classes hold, a line has its own fields and one message."""
    hostile = vector(scontext=context, tcontext=context, tclass=tclass, permissions=[tclass])
    for xen, most in ((False, 21), (True, 5)):
        fields = {"avc": [hostile], "source": name, "port": port, "hook": name}
        (line,) = AvcExport(xen=xen).lines(record(**fields))
        assert line.isascii()
        assert line.isprintable()
        assert line.count("'") == (0 if xen else 2)
        assert line.count('"') % 2 == 0
        assert len(_fields(line)) <= most
        assert len(set(_fields(line))) == len(_fields(line)) - (not xen)  # `msg` comes twice
        assert len(re.findall(r"avc:  denied  { \S+ } for ", line)) == 1


def test_without_the_escaping_a_name_does_forge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: written raw, the same name makes a second record."""
    name = "x'\ntype=USER_AVC msg=audit(1.000:1): msg='avc:  granted  { all } for  "
    (sound,) = AvcExport().lines(record(port=name))
    assert len(sound.splitlines()) == 1
    monkeypatch.setattr(export_module, "untrusted", lambda text: f'"{text}"')
    (forged,) = AvcExport().lines(record(port=name))
    assert [line[:13] for line in forged.splitlines()] == ["type=USER_AVC"] * 2


def test_names_are_written_by_audit_s_rule() -> None:
    """Quoted where they are plain; in hexadecimal with a blank, a quote or another alphabet."""
    assert untrusted("bank-a") == '"bank-a"'
    assert untrusted("") == '""'
    assert untrusted("a b") == "612062"
    assert untrusted('a"b') == "612262"
    assert untrusted("a'b") == "612762"
    assert untrusted("é\n") == "C3A90A"
    assert untrusted("\ud800") == "EDA080"
    assert len(untrusted("é" * 9999)) == 2 * MAX_AVC_NAME


def test_what_does_not_fit_is_left_out_and_counted() -> None:
    """A line longer than audit's tools read is left out; a record says what it had no room for."""
    writer = AvcExport()
    long = vector(scontext="x" * MAX_AVC_LINE)
    assert len(list(writer.lines(record(avc=[vector(), long, vector(), 3])))) == 2
    assert writer.left_out == 4


def test_only_so_many_domains_are_numbered() -> None:
    """Beyond Xen's number of domains a line names none, and memory stays bounded."""
    writer = AvcExport(xen=True)
    writer.domains = {f"d{number}": number for number in range(1, MAX_DOMIDS + 1)}
    (line,) = writer.lines(record())
    assert "} for scontext=" in line
    assert len(writer.domains) == MAX_DOMIDS


@pytest.mark.parametrize(
    "changes",
    [
        {"avc": "x"},
        {"avc": [{"refused": True}]},
        {"avc": [vector(permissions="map_read")]},
        {"avc": [vector(scontext=None)]},
    ],
)
def test_fields_that_are_no_access_vectors_are_a_broken_record(changes: dict[str, object]) -> None:
    """They are named, never guessed at."""
    with pytest.raises(RecordError, match="no access vectors"):
        list(AvcExport().lines(record(**changes)))


@pytest.mark.parametrize("time", ["", "now", "1969-12-31T23:59:59Z", "2024-10-31T19:25:38"])
def test_a_record_without_a_time_is_broken(time: str) -> None:
    """A time that is none, is not UTC or lies before audit's clock is refused."""
    broken = Record(1, time, 1, "", "deny", {"avc": [vector()]}, "")
    with pytest.raises(RecordError, match="time"):
        list(AvcExport().lines(broken))


def test_refusals_without_a_context_are_counted_on_standard_error(tmp_path: Path) -> None:
    """ACM's refusals have no line; what a policy hides neither. Exit code 0: nothing is broken."""
    file = tmp_path / "audit.log"
    permissive = vector(permissive=True)
    write(
        file,
        ("deny", {"hook": "h", "why": {"module": "acm"}}),
        ("deny", {"hook": "h", "avc": [permissive]}),
        ("deny", {"hook": "h", "avc": [vector()]}),
        ("allow", {"hook": "h"}),
        ("cut", {"channel": 1}),
    )
    done = run(file)
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.startswith("without an access vector: 2 refusals (")
    named = run(file, "--style", "xen")
    assert named.stderr.count("\n") == 1


def test_broken_records_are_named_and_the_rest_is_exported(tmp_path: Path) -> None:
    """Altered, torn or meaningless lines are named on standard error; the exit code is 1."""
    file = tmp_path / "audit.log"
    lines = write(file, *[("deny", {"hook": "h", "avc": [vector()]})] * 4)
    whole = run(file)
    assert (whole.exit_code, whole.stderr) == (0, "")
    altered = lines[1].replace(b"map_read", b"map_copy")
    file.write_bytes(lines[0] + altered + b"\x1b[2J\n" + lines[2] + lines[3][:-9])
    for form in ("avc", "json"):
        done = run(file, "--format", form)
        assert isinstance(done.exception, SkerryError)
        assert done.exception.exit_code == 1
        assert "3 broken records" in str(done.exception)
        assert len(done.stdout.splitlines()) == 2
        assert [text[:14] for text in done.stderr.splitlines()] == [
            "broken: line 2",
            "broken: line 3",
            "broken: line 5",
        ]
        assert done.stderr.replace("\n", "").isprintable()


def test_json_is_one_object_a_record_as_it_stands(tmp_path: Path) -> None:
    """Every record, byte for byte; a style is Xen's or audit's, so JSON has none."""
    file = tmp_path / "audit.log"
    lines = write(file, ("allow", {"hook": "h"}), ("note", {"x": "\x1b\u202e"}))
    done = run(file, "--format", "json")
    assert done.stdout.encode() == b"".join(lines)
    assert [json.loads(line)["n"] for line in done.stdout.splitlines()] == [1, 2]
    assert run(file, "--format", "json", "--style", "xen").exit_code == 2
    assert run(file, "--format", "csv").exit_code == 2
    assert run(tmp_path / "none").exit_code == 1


def test_access_vectors_are_not_in_the_lines_of_tail(tmp_path: Path) -> None:
    """They repeat what the refusal says; `why` shows them."""
    file = tmp_path / "audit.log"
    write(file, ("deny", {"hook": "h", "channel": 1, "avc": [vector()]}))
    shown = CliRunner().invoke(audit, ["tail", "--file", str(file)]).stdout
    assert "channel=1" in shown
    assert "scontext" not in shown
    why_shown = CliRunner().invoke(why, ["1", "--file", str(file)]).stdout
    assert f"scontext: {GUEST}" in why_shown


def test_the_node_s_own_trail_needs_no_running_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --file the trail under the node's home is exported."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path))
    (tmp_path / "state").mkdir()
    write(tmp_path / "state" / "audit.log", ("deny", {"hook": "h", "avc": [vector()]}))
    done = CliRunner().invoke(audit, ["export"])
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 1)
