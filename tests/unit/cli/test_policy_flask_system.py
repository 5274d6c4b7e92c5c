"""`check` and `plan` of systems that a FLASK policy governs, alone and stacked with ACM."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from skerry.cli.main import cli
from skerry.errors import InputError
from skerry.label import MAX_LABEL
from skerry.node import setup as node_setup
from skerry.node.setup import load_setup
from skerry.policy.load import load_policy
from skerry.policy.source import Policy, Source
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.stack import Stack
from tests.support import policies

DATA = Path(__file__).parents[1] / "policydb/data"
CONF = (
    (DATA / "xen.conf")
    .read_text()
    .replace("class domain { create", "class domain { unpause create")
    .replace("domain_type:domain { create", "domain_type:domain { unpause create")
)

SYSTEM = """\
name = "guests"
policy = POLICY
domains.red.label = RED
domains.blue.label = BLUE
[[channels]]
kind = "stream"
from = "red"
to = "blue"
name = "talk"
"""

ACM = """\
[policy]
name = "pair"
version = "1.0"
bootstrap = "dom0"
[simple-type-enforcement]
types = ["red", "blue"]
[labels]
dom0.ste = ["red", "blue"]
red.ste = ["red"]
blue.ste = ["blue"]
both.ste = ["red", "blue"]
"""

ONE, TWO = "user_1:vm_r:guest_t", "user_2:vm_r:guest_t"
DOM_U, ISOLATED = "system_u:system_r:domU_t", "system_u:system_r:isolated_domU_t"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the commands a place of their own."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path / "home"))


def write(
    folder: Path, red: str, blue: str, policy: str = f'"{DATA / "xen.30"}"', more: str = ""
) -> Path:
    """Write a system of two domains; labels and policy are TOML."""
    text = SYSTEM.replace("POLICY", policy).replace("RED", red).replace("BLUE", blue)
    path = folder / "system.toml"
    path.write_text(text + more)
    return path


def run(*words: str | Path) -> Result:
    """Run the command line."""
    return CliRunner().invoke(cli, [str(word) for word in words])


def problems(*words: str | Path) -> list[str]:
    """Run a command that must find mistakes, and return them."""
    result = run(*words)
    assert isinstance(result.exception, InputError), result.output
    assert result.exception.exit_code == 2
    return [str(problem) for problem in result.exception.problems]


def steps(path: Path) -> dict[str, tuple[bool, str]]:
    """Return what `plan` says of each step: allowed, and the code."""
    rows = [json.loads(line) for line in run("plan", path, "--json").stdout.splitlines()]
    return {row["action"]: (row["allowed"], row["code"]) for row in rows}


def test_xens_default_policy_governs_a_system(tmp_path: Path) -> None:
    """Two ordinary guests may talk; an isolated one may start and talk to nobody."""
    xen = f'"{policies.xen()}"'
    assert steps(write(tmp_path, f'"{DOM_U}"', f'"{DOM_U}"', xen)) == {
        "start": (True, "TE-ALLOWED"),
        "bind": (True, "TE-ALLOWED"),
    }
    path = write(tmp_path, f'"{DOM_U}"', f'"{ISOLATED}"', xen)
    assert steps(path) == {"start": (True, "TE-ALLOWED"), "bind": (False, "TE-NO-RULE")}
    done = run("check", path)
    assert done.exit_code == 0
    assert "refused by the policy: bind red ↔ blue (talk): no rule allows" in done.stderr


def test_a_policy_as_text_governs_a_system(tmp_path: Path) -> None:
    """Named in the system file, relative to it, and compiled when it is read."""
    (tmp_path / "guests.te").write_text(CONF)
    path = write(tmp_path, f'"{ONE}"', f'"{ONE}"', '"guests.te"')
    assert steps(path)["start"] == (True, "TE-ALLOWED")
    (tmp_path / "guests.te").write_text(CONF.replace("type xen_t;", "typo xen_t;"))
    assert problems("check", path)[0].startswith(f"{tmp_path / 'guests.te'}:24: ")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("user_1:vm_r:nobody_t", "no type 'nobody_t'"),
        ("user_9:vm_r:guest_t", "no user 'user_9'"),
        ("user_1:system_r:guest_t", "the role system_r may not have the type guest_t"),
        ("user_1:system_r:dom0_t", "the user user_1 may not have the role system_r"),
        ("user_1:vm_r:guest_t:s0", "is written user:role:type"),
        ("guest_t", "is written user:role:type"),
        ("unlabeled", "is written user:role:type"),
    ],
)
def test_a_label_that_is_no_context_is_an_error_at_its_line(
    tmp_path: Path, label: str, words: str
) -> None:
    """Of a domain and of an operator alike; never taken for `unlabeled`."""
    path = write(tmp_path, f'"{ONE}"', f'"{label}"')
    (found,) = problems("check", path)
    assert found.startswith(f"{path}:4: ")
    assert words in found
    path = write(tmp_path, f'"{ONE}"', f'"{ONE}"', more=f'[operators]\n"uid:7" = "{label}"\n')
    (found,) = problems("plan", path)
    assert found.startswith(f"{path}:11: ")
    assert words in found
    assert run("check", write(tmp_path, f'"{ONE}"', f'"{ONE}"')).exit_code == 0


def test_a_bad_level_is_an_error_at_its_line(tmp_path: Path) -> None:
    """Xen's policy with MLS; a level the policy has passes."""
    xen = f'"{policies.xen_mls()}"'
    for level, words in (
        ("s0:c999", "no category 'c999'"),
        ("s99", "no sensitivity 's99'"),
        ("s0:c3.c1", "runs backwards"),
        ("s0:c1-s0", "does not dominate"),
    ):
        path = write(tmp_path, f'"{DOM_U}:s0"', f'"{DOM_U}:{level}"', xen)
        (found,) = problems("check", path)
        assert found.startswith(f"{path}:4: ")
        assert words in found
    assert run("check", write(tmp_path, f'"{DOM_U}:s0"', f'"{DOM_U}:s0"', xen)).exit_code == 0


def test_the_longest_label_has_room_for_many_categories(tmp_path: Path) -> None:
    """Every other category on both sides of a range; and one text beyond the limit."""
    listed = ",".join(f"c{number}" for number in range(0, 200, 2))
    label = f"{DOM_U}:s0:{listed}-s0:{listed}"
    assert 900 < len(label) <= MAX_LABEL
    xen = f'"{policies.xen_mls()}"'
    assert run("check", write(tmp_path, f'"{DOM_U}:s0"', f'"{label}"', xen)).exit_code == 0
    (found,) = problems("check", write(tmp_path, f'"{DOM_U}:s0"', f'"{"x" * 2049}"', xen))
    assert f"1 to {MAX_LABEL} printable characters" in found


def stacked(folder: Path, red: str, blue: str) -> Path:
    """Write a system under the small Xen policy and an ACM policy; labels are `acm flask`."""
    (folder / "walls.toml").write_text(ACM)
    (folder / "guests.te").write_text(CONF)
    one, other = (
        f'{{ acm = "{acm}", flask = "{flask}" }}' for acm, flask in (red.split(), blue.split())
    )
    return write(folder, one, other, '["guests.te", "walls.toml"]')


def test_in_a_stack_every_module_must_allow(tmp_path: Path) -> None:
    """Flask refuses two users, ACM two labels without a type in common; both allow the rest."""
    for red, blue, answer in (
        (f"red {ONE}", f"both {ONE}", (True, "TE-ALLOWED")),
        (f"red {ONE}", f"both {TWO}", (False, "CONSTRAINT-FALSE")),
        (f"red {ONE}", f"blue {ONE}", (False, "STE-NO-SHARED-TYPE")),
    ):
        found = steps(stacked(tmp_path, red, blue))
        assert found["start"][0] is True
        assert found["bind"] == answer


def test_a_refusal_in_a_stack_lists_each_modules_answer(tmp_path: Path) -> None:
    """The text of the step has one line for each module."""
    path = stacked(tmp_path, f"red {ONE}", f"red {TWO}")
    rows = [json.loads(line) for line in run("plan", path, "--json").stdout.splitlines()]
    text = rows[-1]["text"]
    assert "  flask: denies: " in text
    assert "  acm: allows: " in text


def test_a_stack_needs_a_part_of_the_label_for_each_module(tmp_path: Path) -> None:
    """A bare text is taken for both, and the message says how to write two."""
    path = stacked(tmp_path, f"red {ONE}", f"red {ONE}")
    path.write_text(path.read_text().replace(f'{{ acm = "red", flask = "{ONE}" }}', '"red"', 1))
    (found,) = problems("check", path)
    assert found.startswith(f"{path}:3: ")
    assert 'write label = { flask = "...", acm = "..." }' in found
    path = stacked(tmp_path, f"red {ONE}", f"red {ONE}")
    path.write_text(path.read_text().replace('acm = "red", ', "", 1))
    assert "for module acm" in problems("check", path)[0]


def test_two_policies_of_one_module_are_no_stack(tmp_path: Path) -> None:
    """One Flask policy at a time."""
    twice = f'["{DATA / "xen.30"}", "{DATA / "xen.24"}"]'
    (found,) = problems("check", write(tmp_path, f'"{ONE}"', f'"{ONE}"', twice))
    assert "flask, flask" in found


def test_the_owner_has_the_label_of_domain_0(tmp_path: Path) -> None:
    """From the initial SID of the policy; a line of one's own takes its place."""
    path = write(tmp_path, f'"{ONE}"', f'"{ONE}"')
    assert str(load_setup(path).owner) == "system_u:system_r:dom0_t"
    more = f'[operators]\n"uid:{os.getuid()}" = "{ONE}"\n'
    assert str(load_setup(write(tmp_path, f'"{ONE}"', f'"{ONE}"', more=more)).owner) == ONE


def without_sid(policy: FlaskModule) -> FlaskModule:
    """Return the policy without a context for its initial SIDs."""
    return FlaskModule(msgspec.structs.replace(policy.policy, object_contexts=()))


def test_a_policy_without_a_label_for_the_owner_asks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says where to write it; with it, the system is sound."""
    module = load_policy(DATA / "xen.30")
    assert isinstance(module, FlaskModule)
    bare = without_sid(module)
    monkeypatch.setattr(
        node_setup, "read_policy", lambda paths: Policy((Source("xen.30", b""),), Stack([bare]))
    )
    (found,) = problems("check", write(tmp_path, f'"{ONE}"', f'"{ONE}"'))
    assert "name your own label in [operators]" in found
    more = f'[operators]\n"uid:{os.getuid()}" = "{ONE}"\n'
    assert run("check", write(tmp_path, f'"{ONE}"', f'"{ONE}"', more=more)).exit_code == 0


CIL = """
(handleunknown UNKNOWN)
(class process (signal))
(class domain (create destroy shutdown pause unpause getdomaininfo transition))
(class domain2 (relabelfrom relabelto))
(class event (create bind send))
(class grant (map_read map_write))
(class security (load_policy setbool))
(classorder (process domain domain2 event grant security))
(sid kernel) (sid security) (sidorder (kernel security))
(user u) (role r) (type t) (userrole u r) (roletype r t)
(sensitivity s0) (sensitivityorder (s0))
(userlevel u (s0)) (userrange u ((s0) (s0)))
(sidcontext kernel (u r t ((s0) (s0)))) (sidcontext security (u r t ((s0) (s0))))
(allow t t (domain (all))) (allow t t (event (all))) (allow t t (grant (all)))
"""


def selinux(folder: Path, unknown: str, lacking: str = "") -> Path:
    """Write a system under an SELinux policy, with or without some text."""
    source = CIL.replace("UNKNOWN", unknown)
    assert lacking in source
    (folder / "policy.cil").write_text(source.replace(lacking, "") if lacking else source)
    flask = load_policy(folder / "policy.cil")
    assert isinstance(flask, FlaskModule)
    label = "u:r:t:s0" if flask.policy.mls else "u:r:t"
    return write(folder, f'"{label}"', f'"{label}"', '"policy.cil"')


@pytest.mark.parametrize(("unknown", "effect"), [("deny", "denied"), ("allow", "allowed")])
def test_what_the_hooks_ask_and_the_policy_lacks_is_told(
    tmp_path: Path, unknown: str, effect: str
) -> None:
    """A class and a permission, each with what becomes of it, once and as a warning."""
    path = selinux(tmp_path, unknown)
    done = run("check", path)
    assert done.exit_code == 0
    lines = [line for line in done.stderr.splitlines() if "lacks" in line]
    assert len(lines) == 1
    assert "lacks the class resource, which is asked here" in lines[0]
    assert f"that is {effect} (handle_unknown is {unknown})" in lines[0]
    done = run("check", selinux(tmp_path, unknown, " getdomaininfo"))
    assert "lacks the class domain { getdomaininfo }" in done.stderr


def test_a_policy_that_would_let_every_operator_change_it_is_refused(tmp_path: Path) -> None:
    """What it does not know it allows, and it does not know who may load; the control denies."""
    (found,) = problems("check", selinux(tmp_path, "allow", " setbool"))
    assert "lacks the class security { setbool }: every operator could change it" in found
    assert run("check", selinux(tmp_path, "deny", " setbool")).exit_code == 0


def test_a_policy_that_rejects_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    """As the kernel refuses it: the error names what is missing."""
    (found,) = problems("check", selinux(tmp_path, "reject"))
    assert "handle_unknown is reject" in found
    assert "resource {" in found


@pytest.mark.parametrize("name", ["domain", "event", "grant"])
def test_a_policy_for_another_purpose_governs_no_domains(tmp_path: Path, name: str) -> None:
    """Without one of the classes that decide it is refused, though it allows the unknown."""
    source = CIL.replace("UNKNOWN", "allow").replace(f"(class {name} (", f"(class my_{name} (")
    source = source.replace(f" {name} ", f" my_{name} ", 1).replace(
        f"({name} (all)", "(process (all)"
    )
    (tmp_path / "policy.cil").write_text(source)
    path = write(tmp_path, '"u:r:t"', '"u:r:t"', '"policy.cil"')
    (found,) = problems("check", path)
    assert f"without {name}: the classes by which domains and channels are decided" in found


@pytest.mark.parametrize("name", ["domain", "event", "grant"])
def test_a_class_of_that_name_with_nothing_that_is_asked_is_another_one(
    tmp_path: Path, name: str
) -> None:
    """It would let everything pass as unknown; one permission that is asked makes it the class."""
    asked = {"domain": "create", "event": "send", "grant": "map_read"}[name]
    path = write(tmp_path, '"u:r:t"', '"u:r:t"', '"policy.cil"')

    def let_it_have(permissions: str) -> None:
        source = CIL.replace("UNKNOWN", "allow")
        one = re.escape(f"(class {name} (") + r"[^)]*\)\)"
        source, count = re.subn(one, f"(class {name} ({permissions}))", source)
        assert count == 1
        (tmp_path / "policy.cil").write_text(source)

    let_it_have("xyzzy")
    (found,) = problems("check", path)
    assert f"without {name}: the classes by which" in found
    let_it_have(f"xyzzy {asked}")
    assert run("check", path).exit_code == 0


def test_debians_selinux_policy_governs_no_domains(tmp_path: Path) -> None:
    """It has none of the classes, and would allow everything that it does not know."""
    path = write(tmp_path, '"u:r:t:s0"', '"u:r:t:s0"', f'"{policies.selinux()}"')
    (found,) = problems("check", path)
    assert "domain, event, grant" in found
