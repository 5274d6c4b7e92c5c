"""Signed policies: what verifies, what does not, and what other tools wrote."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import msgspec
import pytest

from skerry.errors import InputError, PolicyError
from skerry.node.kept import read_setup, save_setup
from skerry.node.setup import load_setup, make_setup, read_files
from skerry.policy.signature import (
    Unsigned,
    added,
    new_key,
    public_key,
    read_signature,
    require_signed,
    sign,
)
from skerry.wire.system_files import MAX_SIGNATURE
from tests.support.simulated import POLICY, SYSTEM, write_system

KEYS = [new_key() for _ in range(2)]
RAW = [public_key(public, "key.pub") for _, public in KEYS]
TEXT = b"the policy"


def signature(content: bytes, key: int = 0) -> bytes:
    """Sign with one of the keys."""
    return sign(KEYS[key][0], content, "key")


def test_what_the_key_signed_verifies_and_nothing_else_does() -> None:
    """Another byte, another key, a cut signature, none: refused. Raw and base64 are the same."""
    good = signature(TEXT)
    require_signed(RAW[0], TEXT, good, "p")
    require_signed(RAW[0], TEXT, base64.b64decode(good), "p")
    require_signed(RAW[0], TEXT, signature(TEXT, 1) + good, "p")
    for key, content, untrusted in (
        (0, TEXT + b" ", good),
        (1, TEXT, good),
        (0, TEXT, good[:-8]),
        (0, TEXT, base64.b64decode(good)[:-1]),
        (0, TEXT, b""),
        (0, TEXT, b"\n" * MAX_SIGNATURE + good),
        (0, TEXT, bytes(64)),
        (0, TEXT, "ü".encode()),
    ):
        with pytest.raises(Unsigned):
            require_signed(RAW[key], content, untrusted, "p")


@pytest.mark.parametrize("form", ["line", "unterminated", "raw"])
def test_a_signature_is_added_to_one_of_any_form(form: str) -> None:
    """Both keys verify what comes out, which does not grow when the same is added again."""
    old = signature(TEXT)
    held = {"line": old, "unterminated": old.rstrip(), "raw": base64.b64decode(old)}[form]
    made = added(held, signature(TEXT, 1), "p")
    for raw in RAW:
        require_signed(raw, TEXT, made, "p")
    assert made == old + signature(TEXT, 1) == added(made, old, "p")


def test_more_signatures_than_a_file_holds_are_refused() -> None:
    """What is there stays; up to the bound they are added."""
    held = b"".join(base64.b64encode(bytes([n] * 64)) + b"\n" for n in range(11))
    assert len(held) <= MAX_SIGNATURE
    assert added(held, b"", "p") == held
    with pytest.raises(InputError, match=r"p\.sig: has no room for another"):
        added(held, signature(TEXT) + base64.b64encode(bytes([99] * 64)), "p")


def test_every_flipped_bit_of_a_signature_is_found() -> None:
    """All 512 of them; the control: unflipped it verifies."""
    good = base64.b64decode(signature(TEXT))
    require_signed(RAW[0], TEXT, good, "p")
    for bit in range(512):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Unsigned):
            require_signed(RAW[0], TEXT, bytes(flipped), "p")


def test_a_key_that_is_none_is_a_wrong_file() -> None:
    """Another algorithm, a private key, nonsense, nothing: in words, with the file."""
    from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    other = (
        Ed448PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    for untrusted in (b"", b"nonsense", KEYS[0][0], other, b"ssh-ed25519 AAAA", b"x" * 100_000):
        with pytest.raises(PolicyError, match=r"k\.pub: no Ed25519 public key"):
            public_key(untrusted, "k.pub")
    for untrusted in (b"", KEYS[0][1], b"-----BEGIN OPENSSH PRIVATE KEY-----\n"):
        with pytest.raises(InputError, match="no Ed25519 private key"):
            sign(untrusted, TEXT, "k")


def test_keys_and_signatures_of_openssl_are_read(tmp_path: Path) -> None:
    """What `openssl pkeyutl -sign -rawin` writes for a key that OpenSSL made verifies."""
    key, policy = tmp_path / "key", tmp_path / "policy"
    policy.write_bytes(TEXT)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "ed25519", "-out", str(key))
    openssl("pkey", "-in", "key", "-pubout", "-out", "key.pub")
    openssl("pkeyutl", "-sign", "-rawin", "-inkey", "key", "-in", "policy", "-out", "policy.sig")
    raw = public_key((tmp_path / "key.pub").read_bytes(), "key.pub")
    require_signed(raw, TEXT, read_signature(policy), str(policy))
    require_signed(raw, TEXT, sign(key.read_bytes(), TEXT, "key"), str(policy))


def test_an_openssh_key_is_read() -> None:
    """The one-line public form, with its comment."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_public_key,
    )

    line = load_pem_public_key(KEYS[0][1]).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert public_key(line + b" owner@host\n", "key.pub") == RAW[0]


def write_signed(folder: Path) -> Path:
    """Write the small system with a policy key and a signed policy; return the system's path."""
    path = write_system(folder, f'policy-key = "key.pub"\n{SYSTEM}')
    (folder / "key.pub").write_bytes(KEYS[0][1])
    (folder / "policy.toml.sig").write_bytes(signature(POLICY.encode()))
    return Path(path)


def test_a_system_with_a_key_takes_only_what_it_signed(tmp_path: Path) -> None:
    """On disk and as bytes alike: the file, the line and what to do are named."""
    path = write_signed(tmp_path)
    assert load_setup(path).policy_key == make_setup(read_files(path)[1]).policy_key == RAW[0]
    (tmp_path / "policy.toml").write_text(POLICY + "\n")
    for load in (load_setup, lambda path: make_setup(read_files(path)[1])):
        with pytest.raises(InputError, match=r"policy\.toml: .*does not verify.*policy sign"):
            load(path)
    (tmp_path / "policy.toml.sig").unlink()
    with pytest.raises(InputError, match="not signed with the policy key"):
        load_setup(path)
    (tmp_path / "key.pub").unlink()
    with pytest.raises(InputError, match=r"key\.pub: cannot be read"):
        load_setup(path)


def test_a_system_carries_the_key_of_its_images(tmp_path: Path) -> None:
    """On disk and as bytes alike, as what a restarted node goes on with; no key, no demand."""
    path = write_signed(tmp_path)
    assert load_setup(path).system.image_signer == b""
    (tmp_path / "images.pub").write_bytes(KEYS[1][1])
    path.write_text(f'image-key = "images.pub"\n{path.read_text()}')
    setups = [load_setup(path), make_setup(read_files(path)[1])]
    assert [setup.system.image_signer for setup in setups] == [RAW[1], RAW[1]]
    assert read_setup(tmp_path, save_setup(tmp_path, setups[0])).system.image_signer == RAW[1]
    given = read_files(path)[1]
    with pytest.raises(InputError, match="it came without the key, which it names"):
        make_setup(msgspec.structs.replace(given, image_key=None))
    (tmp_path / "images.pub").write_text("no key")
    for load in (load_setup, lambda path: make_setup(read_files(path)[1])):
        with pytest.raises(InputError, match=r"images\.pub: no Ed25519 public key"):
            load(path)
    path.write_text(path.read_text().replace('"images.pub"', "7"))
    with pytest.raises(InputError, match="image-key must name a file, not 7"):
        load_setup(path)


def test_a_key_needs_something_to_sign(tmp_path: Path) -> None:
    """With the module dummy alone it would promise what nothing holds."""
    path = write_signed(tmp_path)
    path.write_text(
        'name = "x"\npolicy = "dummy"\npolicy-key = "key.pub"\n[domains.a]\nlabel="a"\n'
    )
    with pytest.raises(InputError, match=r"system\.toml:3: policy-key needs a policy file"):
        load_setup(path)
    path.write_text(path.read_text().replace('"key.pub"', "7"))
    with pytest.raises(InputError, match="policy-key must name a file, not 7"):
        load_setup(path)
