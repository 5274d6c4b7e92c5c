"""The files of `skerry flow prove` and `verify`: what is read of them, and what is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skerry.cli import flow_prove
from skerry.flow.claim import MAX_CLAIMS_BYTES
from tests.unit.cli.test_flow import BANKS, ok, run


def test_a_certificate_of_before_is_not_left_for_what_is_not_proven(tmp_path: Path) -> None:
    """It would be taken for the claim's. The control is written; what is no file stays."""
    written = tmp_path / "proof.json"
    words = ["prove", "--policy", BANKS, "--certificate", str(written)]
    ok(*words, "bank-a -/-> bank-b except broker,SystemManagement")
    assert "1 claim verified" in ok("verify", "--policy", BANKS, str(written))
    assert run(*words, "bank-a -/-> bank-b").exit_code == 1
    assert not written.exists()
    words[-1] = "/dev/null"
    assert run(*words, "bank-a -/-> bank-b").exit_code == 1
    assert Path("/dev/null").exists()


def test_only_regular_files_within_a_bound_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO that nobody writes to is an error at once; so is what would take too much memory, and
    it is not written either. The control is read."""
    fifo, file = str(tmp_path / "fifo"), tmp_path / "file"
    os.mkfifo(fifo)
    for words in (["prove", "--claims", fifo], ["verify", fifo]):
        result = run(words[0], "--policy", BANKS, *words[1:])
        assert "not a regular file" in str(result.exception)
    claim = "bank-a -/-> bank-b except broker,SystemManagement"
    file.write_text(f"# {'x' * MAX_CLAIMS_BYTES}\n{claim}\n")
    result = run("prove", "--policy", BANKS, "--claims", str(file))
    assert f"longer than {MAX_CLAIMS_BYTES} bytes" in str(result.exception)
    words = ["prove", "--policy", BANKS, claim, "--certificate", str(file)]
    ok(*words)
    monkeypatch.setattr(flow_prove, "MAX_CERTIFICATE_PARTS", 10)
    for each in (words, ["verify", "--policy", BANKS, str(file)]):
        assert "more than 67108864 bytes or 10 parts" in str(run(*each).exception)
    file.write_text("[" * 11)
    assert "10 parts" in str(run("verify", "--policy", BANKS, str(file)).exception)
