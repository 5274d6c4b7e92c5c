"""The dialer's own judgement of where a connection leads: what it may not reach, and says."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence

import msgspec
import pytest

from skerry.device.uplink import allow, dialer, words
from skerry.device.uplink.report import Refused, Reports
from tests.support.uplink import WAIT_S, NameServer
from tests.unit.uplink.test_dialer import hand_over, knock


class Inside:
    """A dialer in a thread; the test is its gate."""

    def __init__(self, listed: Sequence[str], resolvers: Sequence[str] = ()) -> None:
        self.gate, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.gate.settimeout(WAIT_S)
        self._reports, self._writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        orders = dialer.Orders(tuple(listed), tuple(resolvers))
        self._theirs.setblocking(False)
        self.dialer = dialer.Dialer(self._theirs, Reports(self._writing), orders)
        self._thread = threading.Thread(target=self.dialer.run)
        self._thread.start()

    def refused(self) -> Refused:
        """Wait for what it refuses next."""
        return msgspec.json.decode(os.read(self._reports, 4096), type=Refused)

    def close(self) -> None:
        """End it."""
        self.gate.close()
        self._thread.join()
        self.dialer._poll.close()
        self._theirs.close()
        os.close(self._reports)
        os.close(self._writing)


@pytest.mark.parametrize("anything_binds", [False, True])
@pytest.mark.parametrize("looks", [True, False], ids=["looks", "control"])
def test_a_name_that_stands_for_the_host_itself_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, looks: bool, anything_binds: bool
) -> None:
    """Also by an address that counts as public, and where an address says nothing by being bound.

    The control does not look whether it is the host's, and is connected.
    """
    monkeypatch.setattr(allow, "is_public", lambda _: True)
    if anything_binds:
        monkeypatch.setattr(dialer, "_can_bind", lambda _: True)
    if not looks:
        monkeypatch.setattr(dialer.Dialer, "_is_own", lambda *_: False)
    names = NameServer({"web.test": ["127.0.0.1"]})
    made = Inside(["web.test:7806"], [names.address])
    made.gate.send(words.resolve(1, "web.test"))
    assert made.gate.recv(512)
    guest, accepted = knock("127.0.0.1", 7806)
    # The gate's listener has the same address: it is in another namespace in truth.
    with socket.create_server(("127.0.0.1", 7806)) as far:
        far.settimeout(WAIT_S if not looks else 0.2)
        hand_over(made, accepted)
        if looks:
            with pytest.raises(ConnectionResetError):
                guest.recv(1)
            with pytest.raises(TimeoutError):
                far.accept()
            told = made.refused()
            assert (told.asked, told.reason) == ("web.test (127.0.0.1:7806)", allow.OWN)
        else:
            there, _ = far.accept()
            there.sendall(b"hello")
            assert guest.recv(5) == b"hello"
            there.close()
    guest.close()
    made.close()
    names.close()


def test_every_address_of_the_host_is_its_own_and_no_other_is() -> None:
    """Also one that is not the first on its interface, whose connections come from the first."""
    assert all(map(dialer._can_bind, ("127.0.0.1", "127.0.0.2", "127.9.9.9")))
    assert not any(map(dialer._can_bind, (dialer._NOBODYS, "93.184.216.34")))


def test_what_refuses_or_cannot_be_reached_is_told() -> None:
    """As the trail names a destination that does not answer: refused at once, or no way there."""
    made = Inside(["127.0.0.2:7807"])
    guest, accepted = knock("127.0.0.2", 7807)
    hand_over(made, accepted)
    with pytest.raises(ConnectionResetError):
        guest.recv(1)
    assert made.refused() == Refused("127.0.0.2:7807", dialer.LATE)
    guest.close()
    near, other = socket.socketpair(socket.AF_UNIX)
    made.dialer._dial(near, "255.255.255.255", 80, "nowhere.test:80")
    assert made.refused() == Refused("nowhere.test:80", dialer.LATE)
    assert other.recv(1) == b""
    other.close()
    made.close()
