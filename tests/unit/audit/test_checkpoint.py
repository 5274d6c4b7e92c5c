"""Checkpoints prove to others what the node saw; the head shows a missing end."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.audit.chain import GENESIS, Link, Proof, seal, verify
from skerry.audit.checkpoint import CHECKPOINT, Checks, key_id, read_public, sign
from skerry.audit.head import read_head, write_head
from skerry.audit.read import read_lines
from skerry.audit.record import Record, body_json, fields_json, parse_record
from skerry.audit.signer import EVERY_RECORDS, EVERY_S, Checkpoints, make_key
from skerry.audit.writer import AuditTrail
from skerry.cli.audit import audit
from skerry.errors import SkerryError

KEY = Ed25519PrivateKey.generate()
OTHER = Ed25519PrivateKey.generate()


def chained(*records: tuple[str, dict[str, object]]) -> list[bytes]:
    """Return a good chain of these records; a checkpoint's fields are made by its `sign` key."""
    lines: list[bytes] = []
    heads = [Link()]
    for n, (event, given_) in enumerate(records, 1):
        fields, key = given_, given_.get("key")
        if isinstance(key, Ed25519PrivateKey):
            signed = sign(key, heads[int(str(given_["of"]))])
            fields = {
                "last": signed.last,
                "hash": signed.hash,
                "key": signed.key,
                "signature": signed.signature,
            } | {name: value for name, value in given_.items() if name not in {"key", "of"}}
        line, digest = seal(
            body_json(n, n, n, heads[-1].hash, event, fields_json(fields)), heads[-1].hash
        )
        lines.append(line)
        heads.append(Link(n, digest))
    return lines


def checked(lines: list[bytes], *keys: Ed25519PrivateKey) -> tuple[Proof, Checks]:
    """Verify with these keys."""
    checks = Checks([key.public_key() for key in keys])
    return verify(lines, see=checks.see), checks


A: tuple[str, dict[str, object]] = ("allow", {})


def test_good_checkpoints_hold_and_what_is_behind_is_counted() -> None:
    """A checkpoint that signs an earlier record holds, with or without records between."""
    lines = chained(
        A, A, (CHECKPOINT, {"key": KEY, "of": 2}), A, A, (CHECKPOINT, {"key": KEY, "of": 4}), A
    )
    proof, checks = checked(lines, OTHER, KEY)
    assert (proof.count, proof.broken) == (7, 0)
    assert (checks.holding, checks.signed) == (2, 4)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"key": OTHER, "of": 2}, "which is not known"),
        ({"key": KEY, "of": 2, "signature": "00" * 64}, "does not hold"),
        ({"key": KEY, "of": 2, "signature": "zz"}, "is no checkpoint"),
        ({"key": KEY, "of": 2, "last": 1}, "does not hold"),
        ({"key": KEY, "of": 2, "more": 1}, "is no checkpoint"),
        ({}, "is no checkpoint"),
        ({"last": [], "hash": 1, "key": None, "signature": {}}, "is no checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_hold_is_named(fields: dict[str, object], why: str) -> None:
    """Another's key, a wrong signature or a bent form breaks the trail at that record."""
    proof, checks = checked(chained(A, A, (CHECKPOINT, fields), A), KEY)
    assert (proof.broken, proof.count, checks.holding) == (3, 2, 0)
    assert why in proof.reason


def test_a_trail_rewritten_after_its_checkpoint_is_found() -> None:
    """Who rewrites a record and every hash behind it can't make the checkpoint fit."""
    good = chained(A, A, (CHECKPOINT, {"key": KEY, "of": 2}))
    fields = parse_record(good[2]).fields
    forged = chained(A, ("deny", {}), (CHECKPOINT, fields))
    assert verify(forged).broken == 0  # the chain alone can't tell
    proof, _ = checked(forged, KEY)
    assert proof.broken == 3
    assert "another record" in proof.reason


@settings(max_examples=50)
@given(st.integers(0, 64 * 8 - 1))
def test_any_flipped_bit_of_a_signature_is_found(bit: int) -> None:
    """Even with every hash made to fit again."""
    signature = bytearray.fromhex(sign(KEY, Link(1, parse_record(chained(A)[0]).hash)).signature)
    signature[bit // 8] ^= 1 << bit % 8
    lines = chained(A, (CHECKPOINT, {"key": KEY, "of": 1, "signature": signature.hex()}))
    assert checked(lines, KEY)[0].broken == 2


def test_the_key_is_made_once_and_is_the_owner_s_alone(tmp_path: Path) -> None:
    """The same key comes back; its public half is readable; loose permissions are refused."""
    path = tmp_path / "audit.key"
    key = make_key(path)
    again = make_key(path)
    assert key.private_bytes_raw() == again.private_bytes_raw()
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_id(read_public(tmp_path / "audit.pub")) == key_id(key.public_key())
    path.chmod(0o640)
    with pytest.raises(SkerryError, match="cannot be used"):
        make_key(path)
    path.chmod(0o600)
    path.write_text("nonsense")
    with pytest.raises(SkerryError, match="cannot be used"):
        make_key(path)
    path.write_text("x" * 10_000)
    with pytest.raises(SkerryError, match="too long"):
        make_key(path)
    assert sorted(name.name for name in tmp_path.iterdir()) == ["audit.key", "audit.pub"]


def test_only_an_ed25519_public_key_is_taken(tmp_path: Path) -> None:
    """Anything else is refused with what to do."""
    path = tmp_path / "key.pub"
    for text in (b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        path.write_bytes(text)
        with pytest.raises(SkerryError, match=r"audit\.pub"):
            read_public(path)
    with pytest.raises(SkerryError, match="cannot be read"):
        read_public(tmp_path / "none")


def test_a_head_is_replaced_whole_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    """What was noted comes back; none is None; anything else is an error, not a head."""
    path = tmp_path / "audit.head"
    assert read_head(path) is None
    for head in (Link(3, "a" * 64), Link(4, "b" * 64)):
        write_head(path, head)
        assert read_head(path) == head
    assert json.loads(path.read_text()) == {"n": 4, "hash": "b" * 64}
    assert [name.name for name in tmp_path.iterdir()] == ["audit.head"]
    bent = [b"", b"{}x", b"[]", b'{"n":-1}', b'{"n":1,"hash":"x"}', b'{"n":1e99}']
    for text in [*bent, b" " * 9000]:
        path.write_bytes(text)
        with pytest.raises(SkerryError, match="damaged"):
            read_head(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SkerryError):
        read_head(path)


def test_a_checkpoint_is_due_by_number_and_by_time(tmp_path: Path) -> None:
    """After so many records, or so many seconds after the first new one; never without any."""

    async def main() -> list[Record]:
        trail = AuditTrail.open(tmp_path / "audit.log")
        points = Checkpoints(trail, KEY, tmp_path / "audit.head")
        assert not await points.look(0.0)
        await trail.append("allow", {})
        assert not await points.look(10.0)
        assert not await points.look(10.0 + EVERY_S - 1)
        assert await points.look(10.0 + EVERY_S)
        assert read_head(tmp_path / "audit.head") == trail.head
        assert not await points.look(10_000.0)
        assert not await points.make()
        await asyncio.gather(*(trail.append("allow", {}) for _ in range(EVERY_RECORDS - 1)))
        assert not await points.look(10_001.0)
        await trail.append("allow", {})
        assert await points.look(10_001.0)
        await trail.append("down", {})
        assert await points.make()
        await asyncio.to_thread(trail.close)
        return [parse_record(line) for line in read_lines(tmp_path / "audit.log")]

    records = asyncio.run(main())
    signed = [record for record in records if record.event == CHECKPOINT]
    assert [(record.n, record.fields["last"]) for record in signed] == [
        (2, 1),
        (EVERY_RECORDS + 3, EVERY_RECORDS + 2),
        (EVERY_RECORDS + 5, EVERY_RECORDS + 4),
    ]
    assert all(record.fields["hash"] == record.prev for record in signed)


def test_a_trail_that_cannot_be_written_has_no_checkpoint_and_no_error(tmp_path: Path) -> None:
    """The signer goes on when the writer does not."""

    async def main() -> None:
        trail = AuditTrail.open(tmp_path / "audit.log")
        await trail.append("allow", {})
        await asyncio.to_thread(trail.close)
        points = Checkpoints(trail, KEY, tmp_path / "audit.head")
        assert not await points.make()
        assert read_head(tmp_path / "audit.head") is None

    asyncio.run(main())


def run(*argv: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(audit, list(argv))


def test_verify_holds_the_node_s_trail_against_its_head_and_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut, or forged by one without the key, the trail is refused; as it was, it is proven."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path))
    state = tmp_path / "state"
    state.mkdir()
    path = state / "audit.log"

    async def main() -> None:
        trail = AuditTrail.open(path)
        points = Checkpoints(trail, make_key(state / "audit.key"), state / "audit.head")
        await trail.append("allow", {})
        assert await points.make()
        await trail.append("allow", {})
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    good = run("verify")
    assert (good.exit_code, good.output.splitlines()[1:]) == (
        0,
        ["1 checkpoints hold, 2 records are behind the last"],
    )
    found = json.loads(run("verify", "--json").output)
    assert (found["checkpoints"], found["unsigned"], found["first"]) == (1, 2, 1)
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:1]))
    cut = run("verify")
    assert cut.exit_code == 1
    assert "record 2 is missing: the trail ends before record 2" in str(cut.exception)
    path.unlink()
    assert "had the head" in str(run("verify").exception)
    path.write_bytes(whole)
    wrong = make_key(tmp_path / "other.key")
    assert key_id(wrong.public_key()) != key_id(read_public(state / "audit.pub"))
    refused = run("verify", "--key", str(tmp_path / "other.pub"))
    assert refused.exit_code == 1
    assert "record 2 is signed with the key" in str(refused.exception)
    both = ("--key", str(tmp_path / "other.pub"), "--key", str(state / "audit.pub"))
    assert run("verify", *both).exit_code == 0


def test_a_genesis_head_is_no_promise() -> None:
    """A node that noted its head before the first record asks nothing of the trail."""
    assert verify([], at_least=Link(0, GENESIS)).broken == 0
