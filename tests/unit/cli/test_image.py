"""`skerry image`, as it is typed: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import SKERRY
from tests.support.kernel_package import Debian

RECIPE = '{}name = "app"\n[[files]]\nfrom = "app.txt"\nto = "/srv/app.txt"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a recipe, on a machine with the small kernel package."""
    Debian(tmp_path / "debian", monkeypatch)
    (tmp_path / "app.txt").write_text("text\n")
    (tmp_path / "app.toml").write_text(RECIPE.format(""))
    return tmp_path


def image(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a cache of its own."""
    cache = [] if words[0] == "keygen" else ["--cache", str(folder / "cache")]
    return subprocess.run(
        [SKERRY, "image", *words, *cache],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def ok(folder: Path, *words: str) -> str:
    """Run a command that must succeed."""
    done = image(folder, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_image_is_built_listed_shown_and_compared(folder: Path) -> None:
    """With sizes and counts; by its file, and the preset by its name."""
    built = ok(folder, "build", "app.toml")
    assert "2 packages" in built
    assert "not signed" in built
    assert "gzip" in built
    ok(folder, "build", "minimal")
    assert [line.split()[0] for line in ok(folder, "list").splitlines()] == [
        "NAME",
        "app",
        "minimal",
    ]
    shown = json.loads(ok(folder, "show", "app", "--json"))
    assert (shown["name"], shown["packages"]) == ("app", 2)
    assert shown["sizes"]["initrd"] > shown["compressed"] > 0
    assert ok(folder, "diff", "minimal", "app").startswith("+ file     srv/app.txt")
    assert json.loads(ok(folder, "diff", "app", "minimal", "--json"))["name"] == "srv/app.txt"
    assert ok(folder, "diff", "app", "app") == "app and app hold the same\n"


def test_a_damaged_image_does_not_hide_the_others(folder: Path) -> None:
    """It is named beside the list, which holds the rest; the exit code says so."""
    ok(folder, "build", "app.toml")
    ok(folder, "build", "minimal")
    assert len(ok(folder, "list", "--json").splitlines()) == 2
    description = folder / "cache/names/app/image.json"
    description.chmod(0o644)
    description.write_text("{}")
    done = image(folder, "list", "--json")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cache/built/" in done.stderr
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["minimal"]


def test_an_image_is_verified_against_the_key_that_signed_it(folder: Path) -> None:
    """Exit code 3 under another key, 1 when it is altered."""
    for key in ("one", "two"):
        assert "image-key" in ok(folder, "keygen", key)
    assert "; signed" in ok(folder, "build", "app.toml", "--key", "one")
    assert "and signed" in ok(folder, "verify", "app", "--key", "one.pub")
    assert "signed" not in ok(folder, "verify", "app")
    other = image(folder, "verify", "app", "--key", "two.pub")
    assert (other.returncode, "IMAGE-UNSIGNED" in other.stderr) == (3, True)
    ok(folder, "sign", "app", "--key", "two", "--add")
    for key in ("one.pub", "two.pub"):
        ok(folder, "verify", "app", "--key", key)
    initrd = folder / "cache/names/app/initrd"
    initrd.chmod(0o644)
    initrd.write_bytes(initrd.read_bytes()[:-1])
    for words in (("verify", "app"), ("show", "app"), ("sign", "app", "--key", "one")):
        done = image(folder, *words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "initrd changed" in done.stderr


def test_a_mistake_in_a_recipe_is_wrong_usage(folder: Path) -> None:
    """Exit code 2, and one line for each with the file and its line."""
    (folder / "app.toml").write_text(RECIPE.format("run = 1\n").replace('"/srv', '"srv'))
    done = image(folder, "build", "app.toml")
    assert done.returncode == 2
    assert [line.partition(": ")[2].partition(": ")[0] for line in done.stderr.splitlines()] == [
        f"{folder}/app.toml:1",
        f"{folder}/app.toml:5",
    ]
    assert image(folder, "build", "none.toml").returncode == 2
    assert image(folder, "verify", "app", "--key", "none").returncode == 2


def test_a_damaged_key_verifies_and_signs_nothing(folder: Path) -> None:
    """It is named, and the image stays as it is."""
    ok(folder, "build", "app.toml")
    (folder / "bad").write_text("no key")
    for words in (("verify", "app", "--key", "bad"), ("sign", "app", "--key", "bad")):
        done = image(folder, *words)
        assert (done.returncode, "bad: no Ed25519" in done.stderr) == (2, True)
    assert "not signed" in ok(folder, "show", "app")


def test_an_image_is_built_anew_to_be_signed(folder: Path) -> None:
    """Twice by two keys, and both count; one that the cache was given is not signed until it is
    removed."""
    for key in ("one", "two"):
        ok(folder, "keygen", key)
        ok(folder, "build", "app.toml", "--key", key)
    for key in ("one.pub", "two.pub"):
        ok(folder, "verify", "app", "--key", key)
    home = folder / "cache/names/app"
    for part in ("initrd", "image.json"):
        (home / part).chmod(0o644)
    was = hashlib.sha256((home / "initrd").read_bytes()).hexdigest()
    (home / "initrd").write_bytes((home / "initrd").read_bytes().replace(b"text\n", b"evil\n"))
    now = hashlib.sha256((home / "initrd").read_bytes()).hexdigest()
    (home / "image.json").write_text((home / "image.json").read_text().replace(was, now))
    ok(folder, "build", "app.toml")  # the control: whole by itself, so found
    refused = image(folder, "build", "app.toml", "--key", "one")
    assert (refused.returncode, "make another image" in refused.stderr) == (1, True)
    assert ok(folder, "remove", "app") == "removed: app\n"
    assert image(folder, "remove", "app").returncode != 0
    ok(folder, "build", "app.toml", "--key", "one")
    assert hashlib.sha256((home / "initrd").read_bytes()).hexdigest() == was
