"""The allow-list: what may be connected to, and which addresses a name may stand for."""

from __future__ import annotations

import pytest

from skerry.device.uplink import allow
from skerry.device.uplink.allow import AllowList

PUBLIC = "93.184.216.34"


def test_a_name_leads_to_what_was_answered_for_it_at_its_port_alone() -> None:
    """Before the answer nothing; then its address at its port; other ports and addresses not."""
    listed = AllowList(["web.test:443"])
    assert not listed.judge(PUBLIC, 443, 0).allowed
    assert listed.pin("web.test", [PUBLIC], 60, 0) == [PUBLIC]
    assert listed.judge(PUBLIC, 443, 1) == (True, "web.test:443", "")
    port = listed.judge(PUBLIC, 80, 1)
    assert (port.allowed, port.asked) == (False, f"web.test ({PUBLIC}:80)")
    assert not listed.judge("93.184.216.35", 443, 1).allowed


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1", "198.18.0.1"),
    ],
)
def test_a_name_never_stands_for_an_address_that_is_not_public(address: str) -> None:
    """What the answer says of the host or its networks is dropped, and what is public is taken."""
    listed = AllowList(["web.test:80"])
    assert listed.pin("web.test", [address, PUBLIC], 60, 0) == [PUBLIC]
    assert not listed.judge(address, 80, 1).allowed
    assert listed.judge(PUBLIC, 80, 1).allowed


def test_an_address_that_is_listed_is_reached_and_may_be_stood_for() -> None:
    """Literally allowed, at the port that is listed: also where a name stands for it."""
    listed = AllowList(["127.0.0.1:8080", "web.test:80"])
    assert listed.judge("127.0.0.1", 8080, 0).allowed
    assert listed.pin("web.test", ["127.0.0.1"], 60, 0) == ["127.0.0.1"]
    refused = listed.judge("127.0.0.1", 80, 1)
    assert (refused.allowed, refused.reason) == (False, allow.NOT_PUBLIC)


def test_an_answer_is_good_for_its_time_and_a_connection_for_a_little_more() -> None:
    """Bounded below and above; then the name is asked for anew, and at last the address is cold."""
    listed = AllowList(["web.test:80"])
    listed.pin("web.test", [PUBLIC], 0, 0)
    assert listed.pinned("web.test", 1) == ([PUBLIC], allow.MIN_TTL_S - 1)
    assert listed.pinned("web.test", allow.MIN_TTL_S + 1) == ([], 0)
    assert listed.judge(PUBLIC, 80, allow.MIN_TTL_S + allow.GRACE_S - 1).allowed
    assert not listed.judge(PUBLIC, 80, allow.MIN_TTL_S + allow.GRACE_S + 1).allowed
    listed.pin("web.test", [PUBLIC], 1 << 31, 0)
    assert listed.pinned("web.test", 0)[1] == allow.MAX_TTL_S


def test_what_a_name_stands_for_is_bounded() -> None:
    """Answers that differ each time push the oldest out."""
    listed = AllowList(["web.test:80"])
    for n in range(100):
        listed.pin("web.test", [f"93.184.{n}.{m}" for m in range(20)], 60, n)
    assert len(listed._pins["web.test"]) == 2 * allow.MAX_ADDRESSES
    assert listed.judge("93.184.99.0", 80, 100).allowed
    assert not listed.judge("93.184.1.0", 80, 100).allowed
