"""`[services.NAME]`: what a name must be, and who may serve it."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.node.setup import load_setup
from skerry.system.load import parse_system
from skerry.system.model import ServiceSpec
from skerry.system.names import MAX_SERVICE_NAME, MAX_SERVICES
from skerry.wire.hypercall import Call, Malformed, parse
from tests.support.hypercalls import POLICY
from tests.support.hypercalls import SYSTEM as SERVED

SYSTEM = 'name = "x"\npolicy = "dummy"\n[domains.a]\nlabel = "l"\n'


def problems(more: str) -> list[str]:
    """Return what is wrong with a system that has these lines, as `LINE: message`."""
    with pytest.raises(InputError) as caught:
        parse_system(SYSTEM + more, Path("/x/system.toml"))
    return [f"{problem.line}: {problem.message}" for problem in caught.value.problems]


def test_a_service_is_a_name_and_the_label_that_may_serve_it() -> None:
    """Its name is hidden from who is refused, unless the file says that it is public."""
    text = (
        '[services.ledger]\noffered-by = "l"\n[services.board]\noffered-by = "l"\npublic = true\n'
    )
    assert parse_system(SYSTEM + text, Path("/x/system.toml")).names == {
        "ledger": ServiceSpec("ledger", "l"),
        "board": ServiceSpec("board", "l", public=True),
    }
    longest = "a" * MAX_SERVICE_NAME
    text = f'[services.{longest}]\noffered-by = "l"\n'
    assert set(parse_system(SYSTEM + text, Path("/x/system.toml")).names) == {longest}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[services.ledger]\n", "5: missing key 'offered-by' in services.ledger"),
        ('[services.ledger]\noffered-by = ""\n', "6: the label services.ledger.offered-by must"),
        ('[services.ledger]\noffered-by = "l"\nwho = 1\n', "7: unknown key 'who' in services"),
        ('[services.ledger]\noffered-by = "l"\npublic = 1\n', "7: public must be true or false"),
        ('[services.Ledger]\noffered-by = "l"\n', "5: a service's name must be 1 to 31"),
        (f'[services.{"a" * 21}]\noffered-by = "l"\n', "5: a service's name has 20 characters"),
        ('[services.skerry]\noffered-by = "l"\n', "5: a service cannot be named 'skerry'"),
        ("[services]\nledger = 1\n", "6: services.ledger must be a table"),
        ("services = 1\n", "5: unknown key"),
    ],
)
def test_a_wrong_service_is_an_error_at_its_line(more: str, said: str) -> None:
    """Nothing is guessed, and a name nobody may serve is no service."""
    assert any(problem.startswith(said) for problem in problems(more)), problems(more)


def test_a_guest_can_ask_for_the_longest_name_and_for_no_longer_one() -> None:
    """The protocol and the file have one limit; what no file can declare is no call."""
    longest = "a" * MAX_SERVICE_NAME
    for verb in ("offer", "connect", "close"):
        assert isinstance(parse(f"1 i {verb} {longest}".encode()), Call)
        assert parse(f"1 i {verb} {longest}a".encode()) == Malformed("i", "MALFORMED")


def test_one_service_too_many_is_an_error() -> None:
    """The limit is named; as many are fine."""
    lines = [f'[services.s{number}]\noffered-by = "l"\n' for number in range(MAX_SERVICES + 1)]
    assert any("257 services; there can be 256" in problem for problem in problems("".join(lines)))
    fine = parse_system(SYSTEM + "".join(lines[1:]), Path("/x/system.toml"))
    assert len(fine.names) == MAX_SERVICES


def test_the_label_that_may_serve_is_one_of_the_policy(tmp_path: Path) -> None:
    """Another is an error at its line; one that no domain of the file has, a warning there."""
    (tmp_path / "policy.toml").write_text(POLICY)
    path = tmp_path / "system.toml"
    path.write_text(SERVED)
    assert load_setup(path).warnings == ()
    line = len(SERVED.splitlines()) + 2
    path.write_text(f'{SERVED}[services.x]\noffered-by = "nobody"\n')
    with pytest.raises(InputError, match=rf"system.toml:{line}: .* no label 'nobody'"):
        load_setup(path)
    path.write_text(f'{SERVED}[services.x]\noffered-by = "op"\n')
    (warning,) = load_setup(path).warnings
    assert (warning.line, "no domain has the label op" in warning.message) == (line, True)
