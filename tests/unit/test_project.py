"""The project's frame: `./run`, the lock, the examples."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.node.assertions import permitted_flows, violations
from skerry.node.setup import load_setup
from tests.support import policies

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "run"
TARGETS = ("demo", "check", "test", "vm", "fault", "oracle", "hostile", "bench", "docs")
SYSTEMS = sorted(ROOT.glob("examples/*/system.toml"))


def run(
    *words: str, script: Path = RUN, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Call a `run` script from `/`, so that nothing depends on the directory."""
    environment = os.environ | ({"PATH": path} if path else {})
    return subprocess.run(
        [script, *words], capture_output=True, text=True, check=False, cwd="/", env=environment
    )


def test_run_without_an_argument_lists_its_targets_and_sets_up_nothing() -> None:
    """The targets are printed, in their order, and nothing else is done or said."""
    done = run()
    assert done.returncode == 0
    assert done.stderr == ""
    listed = re.findall(r"^  (\w+) ", done.stdout, re.M)
    assert tuple(listed) == TARGETS


def test_an_unknown_target_is_wrong_usage() -> None:
    """A target that does not exist is said with exit code 2, before anything is installed."""
    done = run("tset")
    assert done.returncode == 2
    assert "no target 'tset'" in done.stderr


def test_an_argument_that_would_be_ignored_is_wrong_usage() -> None:
    """Only `bench` takes arguments; elsewhere one is an error and not dropped."""
    assert run("check", "src").returncode == 2


@pytest.fixture
def unprivileged_copy(tmp_path: Path) -> Iterator[Path]:
    """A copy of `run` at a path with a space, with stand-ins: an ordinary user, no packages."""
    copy = tmp_path / "a checkout" / "run"
    copy.parent.mkdir()
    shutil.copy(RUN, copy)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in (("id", "echo 1000"), ("dpkg-query", "exit 1"), ("apt-get", "exit 99")):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    yield copy


def test_an_ordinary_user_without_the_packages_is_told_the_command(
    unprivileged_copy: Path, tmp_path: Path
) -> None:
    """It names the packages and the exact `sudo apt-get install`, and ends with 1."""
    path = f"{tmp_path / 'tools'}:{os.environ['PATH']}"
    done = run("check", script=unprivileged_copy, path=path)
    assert done.returncode == 1
    wanted = re.search(r"sudo apt-get install --no-install-recommends (.*)", done.stderr)
    assert wanted
    assert {"python3-venv", "qemu-system-x86", "bubblewrap"} <= set(wanted[1].split())
    assert not (unprivileged_copy.parent / ".venv").exists()


def test_the_lock_holds_every_pin_with_hashes_and_no_host() -> None:
    """What pyproject.toml pins is in the lock, each entry has a hash, and no address is there."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    entries = re.findall(
        r"^([\w.-]+)==(\S+)(.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+)", text, re.M
    )
    locked = {re.sub(r"[._]", "-", name): version for name, version, _ in entries}
    assert len(entries) == len(re.findall(r"^[^#\s]", text, re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for name, _, version in (pin.partition("==") for pin in pins):
        assert locked[name.replace(".", "-")] == version
    assert "setuptools" in locked


def test_ci_runs_the_test_command_of_the_readme_and_nothing_else() -> None:
    """The last line of .ci/run is `./run test`, which the README names; the rest is its frame."""
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'exec "$(dirname -- "${BASH_SOURCE[0]}")/../run" test']
    assert "./run test" in (ROOT / "README.md").read_text(encoding="utf-8")


def example(name: str, folder: Path) -> Path:
    """Copy an example, with the policy that its own script would fetch; return its system file."""
    shutil.copytree(ROOT / "examples" / name, folder, dirs_exist_ok=True)
    if name == "xen-policy":
        shutil.copy(policies.xen(), folder / "xen.30")
    return folder / "system.toml"


@pytest.mark.parametrize("name", [path.parent.name for path in SYSTEMS])
def test_an_example_loads_and_its_assertions_hold(name: str, tmp_path: Path) -> None:
    """System and policy are accepted, and each example states and keeps an assertion."""
    setup = load_setup(example(name, tmp_path))
    assert setup.system.asserts
    assert violations(setup) == []


def test_the_two_banks_are_apart_and_the_broker_serves_either() -> None:
    """The broker may share with both banks, a bookkeeping with its own bank alone."""
    flows = permitted_flows(load_setup(ROOT / "examples/two-banks/system.toml"))
    assert flows == {
        "broker": {"bank-a", "bank-b"},
        "bank-a": {"broker", "bookkeeping-a"},
        "bookkeeping-a": {"bank-a"},
        "bank-b": {"broker", "bookkeeping-b"},
        "bookkeeping-b": {"bank-b"},
    }


@pytest.mark.parametrize("running", ["bank-a", "bookkeeping-a"])
@pytest.mark.parametrize("competitor", ["bank-b", "bookkeeping-b"])
def test_nothing_of_one_bank_runs_beside_the_other(running: str, competitor: str) -> None:
    """The wall refuses it both ways; the control: the broker beside either is admitted."""
    setup = load_setup(ROOT / "examples/two-banks/system.toml")

    def admits(new: str, beside: str) -> bool:
        answers = setup.stack.admit(setup.labels[new], [setup.labels[beside]], {})
        return all(answer.allowed for answer in answers)

    assert not admits(competitor, running)
    assert not admits(running, competitor)
    assert admits("broker", running)
    assert admits("broker", competitor)


def test_low_and_high_meet_in_the_guard_alone() -> None:
    """The guard may share with either side, and they with nobody else."""
    flows = permitted_flows(load_setup(ROOT / "examples/one-guard/system.toml"))
    assert flows == {"low": {"guard"}, "guard": {"low", "high"}, "high": {"guard"}}


def test_a_type_in_common_breaks_the_guards_assertion(tmp_path: Path) -> None:
    """The control of the example's claim: let low and high share, and the file is refused."""
    system = example("one-guard", tmp_path)
    policy = tmp_path / "policy.toml"
    text = policy.read_text(encoding="utf-8")
    policy.write_text(text.replace('ste = ["above"]', 'ste = ["above", "below"]'), "utf-8")
    (broken,) = violations(load_setup(system))
    assert broken.path == ("low", "high")


def test_xens_policy_keeps_the_vault_apart(tmp_path: Path) -> None:
    """Ordinary domains may share, the isolated one with nobody. The control: an ordinary vault."""
    system = example("xen-policy", tmp_path)
    flows = permitted_flows(load_setup(system))
    assert flows == {"web": {"shop"}, "shop": {"web"}, "vault": set()}
    text = system.read_text(encoding="utf-8")
    system.write_text(text.replace("isolated_domU_t", "domU_t"), encoding="utf-8")
    assert [broken.path for broken in violations(load_setup(system))] == [
        ("web", "vault"),
        ("vault", "web"),
    ]
