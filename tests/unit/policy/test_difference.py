"""What becomes allowed and denied from one policy to another."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from skerry.cli.policy import policy as policy_commands
from skerry.errors import InputError
from skerry.node.changes import system_changes
from skerry.policy import difference_allow
from skerry.policy.difference import Change, differences
from skerry.policy.load import load_policy, parse_acm
from skerry.policy.policydb.read import read_policydb
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.flask.model import ALLOW, FlaskPolicy, values
from skerry.xsm.flask.module import FlaskModule
from tests.support import policies
from tests.unit.policy.samples import TOML

DATA = Path(__file__).parents[1] / "policydb/data"
SMALL = read_policydb((DATA / "xen.30").read_bytes(), "xen.30")

Access = set[tuple[str, str, str, str, str]]


def changes(old: FlaskPolicy, new: FlaskPolicy) -> list[Change]:
    """Return what differs between two models."""
    return list(differences(FlaskModule(old), FlaskModule(new)))


def expanded(found: Iterable[Change]) -> Access:
    """Return each pair and permission that changes by itself."""
    return {
        (change.effect, source, target, change.tclass, permission)
        for change in found
        if change.kind == "allow"
        for source in change.sources
        for target in change.targets
        for permission in change.permissions
    }


def granted(policy: FlaskPolicy) -> set[tuple[str, str, str, str]]:
    """Return what the rules in force give every pair of types, worked out pair by pair."""
    members = defaultdict(list)
    for value, kind in policy.types.items():
        if not kind.attribute:
            for held in values(policy.attributes[value]):
                members[held].append(kind.name)
    return {
        (source, target, policy.classes[tclass].name, permission)
        for one, two, tclass, kind, vector in FlaskModule(policy).rules_in_force()
        if kind == ALLOW
        for source in members[one]
        for target in members[two]
        for permission in policy.classes[tclass].names(vector)
    }


def expected(old: FlaskPolicy, new: FlaskPolicy) -> Access:
    """Return the difference of the expanded policies."""
    before, after = granted(old), granted(new)
    return {("denied", *one) for one in before - after} | {
        ("allowed", *one) for one in after - before
    }


def scrambled(policy: FlaskPolicy, chance: random.Random) -> FlaskPolicy:
    """Return a policy with rules changed, members of attributes moved and a boolean set."""
    rules = [rule for rule in policy.rules if chance.random() > 0.05]
    for _ in range(chance.randrange(6)):
        _, two, tclass, kind, vector = chance.choice(policy.rules)
        if kind == ALLOW:
            other = chance.choice(policy.rules)
            rules.append((other[0], two, tclass, kind, vector ^ 1 << chance.randrange(4)))
    marks = [kind.value for kind in policy.types.values() if kind.attribute]
    attributes = dict(policy.attributes)
    for _ in range(chance.randrange(4)):
        moved = chance.choice([t.value for t in policy.types.values() if not t.attribute])
        attributes[moved] ^= 1 << chance.choice(marks) - 1
    booleans = {
        value: msgspec.structs.replace(item, state=chance.random() < 0.5)
        for value, item in policy.booleans.items()
    }
    return msgspec.structs.replace(
        policy, rules=tuple(rules), attributes=attributes, booleans=booleans
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_difference_is_that_of_all_pairs_expanded(seed: int) -> None:
    """Rules, attributes and booleans changed at random: no pair too many and none too few."""
    chance = random.Random(seed)
    whole = load_policy(policies.xen())
    assert isinstance(whole, FlaskModule)
    for policy in (SMALL, whole.policy):
        old, new = scrambled(policy, chance), scrambled(policy, chance)
        found = expanded(changes(old, new))
        assert found == expected(old, new)
        assert found, "the scrambled policies should differ"
        assert expanded(changes(new, old)) == {
            ("allowed" if effect == "denied" else "denied", *rest) for effect, *rest in found
        }


def test_numbers_play_no_part() -> None:
    """One policy written in two versions, its types numbered anew, does not differ."""
    one, other = (load_policy(policies.xen(version)) for version in (24, 30))
    assert list(differences(one, other)) == []
    assert changes(SMALL, renumbered(SMALL)) == []


def renumbered(policy: FlaskPolicy) -> FlaskPolicy:
    """Return the same policy with the permissions of a class in another order."""
    grant = policy.class_named("grant")
    assert grant is not None
    count = len(grant.permissions)

    def moved(vector: int) -> int:
        return sum(1 << count - 1 - bit for bit in range(count) if vector >> bit & 1)

    rules = tuple(
        (*rule[:4], moved(rule[4])) if rule[2] == grant.value and rule[3] == ALLOW else rule
        for rule in policy.rules
    )
    conditionals = tuple(
        msgspec.structs.replace(
            entry,
            if_true=tuple(
                (*r[:4], moved(r[4])) if r[2] == grant.value else r for r in entry.if_true
            ),
        )
        for entry in policy.conditionals
    )
    constraints = tuple(
        msgspec.structs.replace(entry, permissions=moved(entry.permissions))
        for entry in grant.constraints
    )
    new = msgspec.structs.replace(
        grant, permissions=tuple(reversed(grant.permissions)), constraints=constraints
    )
    return msgspec.structs.replace(
        policy,
        rules=rules,
        conditionals=conditionals,
        classes={**policy.classes, grant.value: new},
    )


def test_sources_with_the_same_change_stand_together() -> None:
    """One rule over an attribute less is one change, not one for each type."""
    whole = load_policy(policies.xen())
    assert isinstance(whole, FlaskModule)
    policy = whole.policy
    mark = next(k.value for k in policy.types.values() if k.name == "domain_type")
    rule = next(r for r in policy.rules if r[0] == mark and r[3] == ALLOW)
    less = msgspec.structs.replace(policy, rules=tuple(r for r in policy.rules if r != rule))
    found = changes(policy, less)
    assert {(change.effect, change.kind) for change in found} == {("denied", "allow")}
    assert max(len(change.sources) for change in found) > 3
    assert len(found) < len(expanded(found))


def test_what_decides_beside_the_rules_is_compared_as_written(tmp_path: Path) -> None:
    """Constraints, roles, bounds, booleans and transitions, each by its text."""
    source = (DATA / "xen.conf").read_text()
    old = load_policy(policies.compile_conf(source, tmp_path / "old", "xen", 30, mls=False))
    for before, after, removed, added in (
        ("u1 == u2 or", "", "constrain grant { map_read map_write } (u1 == u2 or", "constrain"),
        ("allow system_r vm_r;", "", "allow system_r vm_r;", ""),
        ("typebounds guest_t child_t;", "", "typebounds guest_t child_t;", ""),
        ("share true;", "share false;", "bool guests_may_share true;", "bool guests_may_share"),
        ("user user_2 roles vm_r;", "", "user user_2 roles vm_r;", ""),
        (
            "domain_type:event guest_channel",
            "domain_type:event dom0_channel",
            "type_transition guest_t dom0_t:event guest_channel;",
            "type_transition guest_t dom0_t:event dom0_channel;",
        ),
    ):
        text = source.replace(before, after)
        assert text != source
        new = load_policy(policies.compile_conf(text, tmp_path / "new", "xen", 30, mls=False))
        found = [change for change in differences(old, new) if change.kind != "allow"]
        texts = {
            effect: [c.text for c in found if c.effect == effect] for effect in ("removed", "added")
        }
        assert any(text.startswith(removed) for text in texts["removed"]), (removed, texts)
        if added:
            assert any(text.startswith(added) for text in texts["added"]), (added, texts)


@pytest.mark.parametrize(
    ("before", "after", "removed"),
    [
        ("role_transition user_r", "#", "role_transition user_r guard_t:process admin_r;"),
        ("range_transition", "#", "range_transition app_t guard_t:process s1:c0,c1;"),
        (
            "type_transition app_t tmp_t:file log_t",
            "#",
            'type_transition app_t tmp_t:file log_t "app.log";',
        ),
        ("range s0 - s1:c0.c2", "range s0 - s1:c0", "user user_u range s0-s1:c0.c2;"),
        (
            "security admin_u:object_r:kernel_t",
            "security admin_u:object_r:tmp_t",
            "sid 2 admin_u:object_r:kernel_t:s0;",
        ),
    ],
)
def test_what_labels_new_things_is_compared_too(
    tmp_path: Path, before: str, after: str, removed: str
) -> None:
    """Transitions of roles and ranges, ranges of users and initial SIDs, of an MLS policy."""
    source = (DATA / "small.conf").read_text()
    changed = source.replace(before, after)
    assert changed != source
    (tmp_path / "old").write_text(source)
    (tmp_path / "new").write_text(changed)
    found = list(differences(load_policy(tmp_path / "old"), load_policy(tmp_path / "new")))
    assert removed in [change.text for change in found if change.effect == "removed"], found


def test_a_policy_of_another_kind_cannot_be_compared() -> None:
    """ACM against Flask has no answer, and says so; so has the dummy module."""
    acm = AcmModule(parse_acm(TOML.encode(), "banks.toml"))
    for pair in ((acm, FlaskModule(SMALL)), (FlaskModule(SMALL), load_policy("dummy"))):
        with pytest.raises(InputError, match="can't be compared"):
            differences(*pair)


def test_too_many_types_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is an error that names it; at the limit all goes well."""
    monkeypatch.setattr(difference_allow, "MAX_COMPARED_TYPES", len(SMALL.types))
    assert changes(SMALL, SMALL) == []
    monkeypatch.setattr(difference_allow, "MAX_COMPARED_TYPES", len(SMALL.types) - 1)
    with pytest.raises(InputError, match="at most 8 are compared"):
        changes(SMALL, SMALL)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_forgotten_for_memory_changes_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one row and one comparison, the difference is the same."""
    chance = random.Random(seed)
    old, new = scrambled(SMALL, chance), scrambled(SMALL, chance)
    monkeypatch.setattr(difference_allow, "_MAX_EXPANDED_BYTES", 1)
    monkeypatch.setattr(difference_allow, "_MAX_KEPT", 1)
    assert expanded(changes(old, new)) == expected(old, new)


def test_acm_policies_are_compared_by_pairs_of_labels() -> None:
    """Sharing, creating, resources and the wall; labels alike stand together."""
    old = AcmModule(parse_acm(TOML.encode(), "old"))
    same = list(differences(old, AcmModule(parse_acm(TOML.encode(), "new"))))
    assert same == []
    text = TOML.replace('[labels.bank-a]\nste = ["bank-a"]', '[labels.bank-a]\nste = ["bank-b"]')
    assert text != TOML
    found = list(differences(old, AcmModule(parse_acm(text.encode(), "new"))))
    pairs = {
        (c.effect, c.kind, source, target)
        for c in found
        for source in c.sources
        for target in c.targets
    }
    assert ("allowed", "share", "bank-a", "bank-b") in pairs
    assert ("allowed", "share", "bank-b", "bank-a") in pairs
    assert ("denied", "use", "bank-a", "ledger-a") in pairs
    assert not any(pair[2:] == ("dom0", "bank-a") for pair in pairs)
    wall = TOML.replace('cw = ["bank-b"]', "cw = []")
    assert wall != TOML
    beside = list(differences(old, AcmModule(parse_acm(wall.encode(), "new"))))
    assert {change.kind for change in beside} == {"run beside"}
    assert {change.effect for change in beside} == {"allowed"}


def test_the_command_prints_lines_and_objects(tmp_path: Path) -> None:
    """Exit 0 whatever differs; two lists of names and the permissions; `no difference`."""
    old, new = str(DATA / "xen.30"), tmp_path / "new.te"
    source = (DATA / "xen.conf").read_text()
    new.write_text(source.replace("allow dom0_t domain_type:grant { map_read map_write };", ""))
    run = CliRunner()
    text = run.invoke(policy_commands, ["diff", old, str(new)])
    assert text.exit_code == 0
    (line,) = text.stdout.splitlines()
    assert line.startswith("- denied: dom0_t {")
    assert line.endswith(":grant { map_read map_write }")
    (row,) = run.invoke(policy_commands, ["diff", old, str(new), "--json"]).stdout.splitlines()
    found = json.loads(row)
    assert (found["effect"], found["kind"], found["sources"]) == ("denied", "allow", ["dom0_t"])
    assert (found["class"], found["permissions"]) == ("grant", ["map_read", "map_write"])
    assert sorted(found["targets"]) == ["child_t", "dom0_t", "guest_t"]
    assert run.invoke(policy_commands, ["diff", old, old]).stdout == "no difference\n"


def test_a_name_that_may_hold_any_byte_is_shown_escaped(tmp_path: Path) -> None:
    """A transition's file name can neither move the cursor nor forge a line of its own."""
    policy = load_policy(DATA / "small.33")
    assert isinstance(policy, FlaskModule)
    entry = policy.policy.file_transitions[0]
    old = (DATA / "small.33").read_bytes()
    assert old.count(entry.name.encode()) == 1
    odd = b"\x1b[2J\n- denied: all".ljust(len(entry.name), b"!")[: len(entry.name)]
    (tmp_path / "odd").write_bytes(old.replace(entry.name.encode(), odd))
    done = CliRunner().invoke(policy_commands, ["diff", str(DATA / "small.33"), f"{tmp_path}/odd"])
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert "\\x1b" in done.stdout
    assert all("type_transition" in line for line in done.stdout.splitlines())


SYSTEM = """\
name = "guests"
policy = "old.te"
domains.one.label = "user_1:vm_r:guest_t"
domains.other.label = "user_2:vm_r:guest_t"
domains.child.label = "user_1:vm_r:child_t"
"""


def test_a_difference_for_a_system_counts_all_that_decides(tmp_path: Path) -> None:
    """A constraint that falls lets two users share: no rule differs, and two domains may more."""
    source = (DATA / "xen.conf").read_text()
    (tmp_path / "old.te").write_text(source)
    freer = source.replace("( u1 == u2 or", "( t1 == guest_t or")
    assert freer != source
    (tmp_path / "new.te").write_text(freer)
    (tmp_path / "system.toml").write_text(SYSTEM)
    files = [str(tmp_path / name) for name in ("old.te", "new.te")]
    run = CliRunner()
    words = ["diff", *files, "--system", str(tmp_path / "system.toml")]
    rows = [
        json.loads(line)
        for line in run.invoke(policy_commands, [*words, "--json"]).stdout.splitlines()
    ]
    assert {row["effect"] for row in rows} == {"allowed"}
    assert {row["kind"] for row in rows} == {
        "channel_two_way", "channel_one_way", "memory_read", "memory_both"
    }  # fmt: skip
    pairs = {(s, t) for row in rows for s in row["sources"] for t in row["targets"]}
    assert pairs == {("one", "other"), ("other", "one")}
    text = run.invoke(policy_commands, words).stdout
    assert "+ allowed: one -> other: a two-way stream or link between two domains" in text
    assert {c.kind for c in differences(*map(load_policy, files))} == {"constraint"}
    back = ["diff", *reversed(files), "--system", str(tmp_path / "system.toml"), "--json"]
    denied = [json.loads(line) for line in run.invoke(policy_commands, back).stdout.splitlines()]
    assert {row["effect"] for row in denied} == {"denied"}


def test_a_domain_whose_label_is_gone_may_nothing(tmp_path: Path) -> None:
    """Each operation on it becomes denied; one that stays is not named."""
    source = (DATA / "xen.conf").read_text()
    (tmp_path / "old.te").write_text(source)
    (tmp_path / "new.te").write_text(source.replace("user user_2 roles vm_r;", ""))
    (tmp_path / "system.toml").write_text(SYSTEM)
    old, new = (load_policy(tmp_path / name) for name in ("old.te", "new.te"))
    found = list(system_changes(tmp_path / "system.toml", old, new))
    on_it = {c.kind for c in found if c.targets == ("other",) and c.sources == ("operator",)}
    assert {"domain_create", "domain_pause", "domain_destroy"} <= on_it
    assert {change.effect for change in found} == {"denied"}
    operated = {t for c in found if c.sources == ("operator",) for t in c.targets}
    assert operated == {"other"}
    with pytest.raises(InputError, match="no policy of the module acm"):
        acm = AcmModule(parse_acm(TOML.encode(), "banks.toml"))
        list(system_changes(tmp_path / "system.toml", acm, acm))


def test_what_domains_may_use_is_compared_too(tmp_path: Path) -> None:
    """A resource label that moves to another type: one domain gains the disk, another loses it."""
    (tmp_path / "old.toml").write_text(TOML)
    moved = TOML.replace(
        '[resources.ledger-a]\nste = "bank-a"', '[resources.ledger-a]\nste = "bank-b"'
    )
    assert moved != TOML
    (tmp_path / "new.toml").write_text(moved)
    disk = '[resources.disk]\nkind = "disk"\nlabel = "ledger-a"\nfile = "disk.img"\n'
    domains = "".join(f'[domains.{bank}]\nlabel = "{bank}"\n' for bank in ("bank-a", "bank-b"))
    (tmp_path / "system.toml").write_text(f'name = "x"\npolicy = "old.toml"\n{domains}{disk}')
    old, new = (
        AcmModule(parse_acm((tmp_path / f).read_bytes(), f)) for f in ("old.toml", "new.toml")
    )
    found = {
        (c.effect, c.kind, c.sources, c.targets)
        for c in system_changes(tmp_path / "system.toml", old, new)
    }
    assert found == {
        (effect, hook, (bank,), ("disk",))
        for hook in ("resource_read", "resource_both")
        for effect, bank in (("denied", "bank-a"), ("allowed", "bank-b"))
    }
