"""FLASK policies as text: how they are recognised, compiled and refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skerry.errors import PolicyError
from skerry.policy import compile as compiling
from skerry.policy.compile import language_of, target_of
from skerry.policy.difference import differences
from skerry.policy.load import MAX_POLICY_BYTES, load_policy, parse_policy, policy_bytes
from skerry.xsm.flask.module import FlaskModule
from tests.unit.policy.samples import CLASSICAL, TOML

DATA = Path(__file__).parents[1] / "policydb/data"
XEN_CONF = (DATA / "xen.conf").read_text()

CIL = """; a policy for Xen in CIL
(handleunknown deny)
(class domain (create pause))
(class grant (map_read))
(classorder (domain grant))
(sid xen) (sidorder (xen))
(user u) (role r) (type t)
(userrole u r) (roletype r t)
(userlevel u (s0)) (userrange u ((s0) (s0)))
(sensitivity s0) (sensitivityorder (s0))
(sidcontext xen (u r t ((s0) (s0))))
(allow t t (domain (pause)))
"""


def flask(path: Path) -> FlaskModule:
    """Load a policy that must be FLASK."""
    module = load_policy(path)
    assert isinstance(module, FlaskModule)
    return module


def test_the_language_is_recognised_by_the_first_word() -> None:
    """Comments and blanks aside; TOML, XML and compiled policies are none of the two."""
    for text, language in (
        (XEN_CONF, "conf"),
        (f"# domains\n\n   #line 3\n{XEN_CONF}", "conf"),
        ("policycap open_perms;", "conf"),
        (CIL, "cil"),
        ("(class a (b))", "cil"),
        (TOML, None),
        (f"# type t;\n{TOML}", None),
        ('type = "acm"', None),
        ("class.x = 1", None),
        ("class-x = 1", None),
        ("classes", None),
        (CLASSICAL, None),
        ("", None),
    ):
        assert language_of(text.encode()) == language, text[:40]
    assert language_of((DATA / "xen.30").read_bytes()) is None


def test_the_target_is_told_by_the_classes() -> None:
    """Xen acts by `domain`, SELinux by `process`; what a comment names does not count."""
    assert target_of(XEN_CONF.encode(), "conf") == "xen"
    assert target_of((DATA / "small.conf").read_bytes(), "conf") == "selinux"
    assert target_of(b"class process\nclass domain\n", "conf") == "selinux"
    assert target_of(b"class file\n# class domain\n", "conf") == "selinux"
    assert target_of(b"class file\n", "conf") == "selinux"
    assert target_of(CIL.encode(), "cil") == "xen"
    assert target_of(b"; (class domain (x))\n(class file (read))", "cil") == "selinux"


def test_a_policy_as_text_decides_as_its_binary_does(tmp_path: Path) -> None:
    """The same source, compiled here and by hand, is the same policy; another source is not.

    By meaning, not by bytes: another version of the compiler numbers and orders differently.
    """
    text = tmp_path / "policy.te"
    for source, compiled, rule in (
        ("xen.conf", "xen.30", "allow system_r vm_r;"),
        ("small.conf", "small.33", "range_transition"),
    ):
        written, binary = (DATA / source).read_text(), flask(DATA / compiled)
        text.write_text(written)
        made = flask(text)
        assert list(differences(made, binary)) == []
        assert [heads(made), made.policy.mls] == [heads(binary), compiled == "small.33"]
        assert rule in written
        text.write_text(written.replace(rule, f"# {rule}"))
        assert list(differences(flask(text), binary))


def heads(module: FlaskModule) -> list[object]:
    """Return what a policy says of itself, which no rule does."""
    policy = module.policy
    return [policy.flavour, policy.version, policy.mls, policy.handle_unknown]


def test_a_policy_in_cil_is_compiled_for_its_target(tmp_path: Path) -> None:
    """Class, type and rule come back; what it says about unknown classes too."""
    path = tmp_path / "xen.xml"
    path.write_text(CIL)
    policy = flask(path).policy
    assert (policy.flavour, policy.version, policy.handle_unknown) == ("xen", 30, "deny")
    label = "u:r:t:s0" if policy.mls else "u:r:t"
    assert flask(path).decide(label, label, "domain", ("pause",)).allowed
    assert not flask(path).decide(label, label, "domain", ("create",)).allowed
    path.write_text(CIL.replace("class domain", "class process").replace("domain", "process"))
    assert flask(path).policy.flavour == "selinux"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (XEN_CONF.replace("type xen_t;", "type xen_t;\ntype guest_t"), 26, "syntax error"),
        (XEN_CONF + "\nallow dom0_t nobody_t:event send;", 0, ""),
        (XEN_CONF.replace("allow dom0_t domain_type:grant", "allow no_t guest_t:grant"), 0, "no_t"),
        (
            XEN_CONF.replace("type xen_t;", "neverallow guest_t child_t:grant copy;\ntype xen_t;"),
            0,
            "neverallow",
        ),
        (CIL + "(allow t nobody (domain (pause)))\n", 13, "Failed to resolve allow"),
        (CIL + "(allow", 0, ""),
        (CIL + "(nonsense)\n", 0, "nonsense"),
        (CIL + "(neverallow t t (domain (pause)))\n", 13, "neverallow"),
        ("module guests 1.0;\nrequire { type t; }", 1, "a part of a policy"),
        ("# first\npolicy_module(guests, 1.0)\n", 2, "a part of a policy"),
    ],
)
def test_what_the_compiler_refuses_is_told_with_the_users_file_and_line(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    """The name is the user's, not that of a copy, and the words are the compiler's."""
    path = tmp_path / "mine.te"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    found = caught.value.problems
    assert {problem.file for problem in found} == {str(path)}
    assert words in str(caught.value)
    if line:
        assert line in [problem.line for problem in found], found


def test_a_missing_compiler_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with what to install; compiled policies need none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for text, package in ((XEN_CONF, "checkpolicy"), (CIL, "secilc")):
        (tmp_path / "text").write_text(text)
        with pytest.raises(PolicyError, match=f"apt-get install {package}"):
            load_policy(tmp_path / "text")
    assert flask(DATA / "xen.30").policy.flavour == "xen"


def stand_in(folder: Path, script: str) -> None:
    """Put a script in the place of checkpolicy."""
    tool = folder / "checkpolicy"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exec sleep 100", "did not end in 1 s"),
        ("kill -SEGV $$", "ended by signal 11"),
        ("exit 3", "failed without a word"),
        ("exit 0", "wrote no policy"),
        ("head -c 9000 /dev/zero > compiled; exit $?", "File size limit exceeded"),
        ("printf garbage > compiled", "wrote no policy"),
        ("printf 'policy.conf:7:ERROR \\033[2Jx on line 7:\\n'; exit 1", r":7: \\x1b\[2Jx"),
        ("head -c 4096 /dev/zero | tr '\\0' '\\n'; echo 'some words'; exit 1", "some words"),
    ],
)
def test_a_compiler_that_misbehaves_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    """One that hangs, crashes, floods or writes no policy ends in an error, and is gone."""
    stand_in(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(compiling, "MAX_COMPILE_SECONDS", 1)
    monkeypatch.setattr(compiling, "MAX_COMPILED_BYTES", 8192)
    path = tmp_path / "policy"
    path.write_text(XEN_CONF)
    with pytest.raises(PolicyError, match=words):
        load_policy(path)


def test_a_policy_that_compiles_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound of compiled policies holds for what was compiled here, too."""
    stand_in(
        tmp_path, f"(printf '\\214\\377|\\371'; head -c {MAX_POLICY_BYTES} /dev/zero) > compiled"
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "policy").write_text(XEN_CONF)
    with pytest.raises(PolicyError, match="when compiled"):
        load_policy(tmp_path / "policy")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a good nor a bad compilation leaves a file in the folder of temporary files."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    (tmp_path / "good").write_text(XEN_CONF)
    (tmp_path / "bad").write_text(XEN_CONF + "nonsense")
    assert load_policy(tmp_path / "good").name == "flask"
    with pytest.raises(PolicyError):
        load_policy(tmp_path / "bad")
    assert not list(work.iterdir())


def test_only_a_file_is_compiled_never_what_was_sent() -> None:
    """A node gets binaries: it runs no compiler for anybody. Modules are no policies."""
    with pytest.raises(PolicyError, match="compile it first"):
        parse_policy(XEN_CONF.encode(), "f")
    assert parse_policy(policy_bytes(DATA / "xen.conf"), "f").name == "flask"
    for magic in ("8fff7cf9", "8dff7cf9"):
        with pytest.raises(PolicyError, match="policy module"):
            parse_policy(bytes.fromhex(magic) + b"\1" * 40, "f")
