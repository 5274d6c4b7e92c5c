"""Swap that encrypts nothing is a missing layer, which a system file must accept by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from pathlib import Path

import pytest

from skerry.channel.stream import StreamBridges
from skerry.errors import LayerMissing
from skerry.jail.identity import own
from skerry.node import selftest, swap
from skerry.node.swap import plain_swap
from skerry.system.model import JAIL_LAYERS
from tests.support.machines import cache

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
LUKS = "CRYPT-LUKS2-0123456789abcdef0123456789abcdef-swap"


class Host:
    """What the kernel of a host would say, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.swaps, self.sys = folder / "swaps", folder / "sys"
        self.swaps.write_text(HEAD)

    def device(self, name: str, **files: str) -> Path:
        """Add a block device, with the files of its folder (`__` for `/`)."""
        made = self.sys / "class/block" / name
        for file, content in {"size": "1", **files}.items():
            place = made / file.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content + "\n")
        return made

    def over(self, name: str, *below: str) -> None:
        """Lay a device on others."""
        folder = self.sys / "class/block" / name / "slaves"
        folder.mkdir(parents=True)
        for one in below:
            (folder / one).symlink_to(self.sys / "class/block" / one)

    def on(self, name: str) -> list[str]:
        """Turn one area of swap on; return what is plain."""
        self.swaps.write_text(f"{HEAD}{name}                 partition\t1048572\t\t0\t\t-2\n")
        return plain_swap(self.swaps, self.sys)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host without swap."""
    return Host(tmp_path)


def test_a_host_without_swap_lacks_nothing(host: Host, tmp_path: Path) -> None:
    """No area, or a kernel that has no swap at all."""
    assert plain_swap(host.swaps, host.sys) == []
    assert plain_swap(tmp_path / "nothing", host.sys) == []


def test_a_partition_is_plain_and_an_encrypted_device_is_not(host: Host) -> None:
    """What the kernel says of the device decides, not its name."""
    host.device("sda2", partition="2")
    host.device("dm-0", dm__uuid=LUKS)
    host.device("dm-1", dm__uuid="CRYPT-PLAIN-cryptswap1")
    host.device("dm-2", dm__uuid="LVM-abcdef")
    assert host.on("/dev/sda2") == ["/dev/sda2"]
    assert host.on("/dev/dm-0") == []
    assert host.on("/dev/dm-1") == []
    assert host.on("/dev/dm-2") == ["/dev/dm-2"]


def test_what_only_checks_does_not_encrypt(host: Host) -> None:
    """Two targets of the same tool that say CRYPT- and leave the text as it is."""
    host.device("dm-0", dm__uuid="CRYPT-VERITY-0123456789abcdef-root")
    host.device("dm-1", dm__uuid="CRYPT-INTEGRITY-swap")
    assert host.on("/dev/dm-0") == ["/dev/dm-0"]
    assert host.on("/dev/dm-1") == ["/dev/dm-1"]


def test_a_volume_is_as_safe_as_all_that_it_lies_on(host: Host) -> None:
    """A logical volume on encrypted devices is safe; one with a plain half is not."""
    host.device("dm-0", dm__uuid=LUKS)
    host.device("sdb1", partition="1")
    host.device("dm-3", dm__uuid="LVM-abcdef")
    host.over("dm-3", "dm-0")
    host.device("dm-4", dm__uuid="LVM-012345")
    host.over("dm-4", "dm-0", "sdb1")
    assert host.on("/dev/dm-3") == []
    assert host.on("/dev/dm-4") == ["/dev/dm-4"]


def test_devices_that_lie_on_each_other_come_to_an_end(host: Host) -> None:
    """A tree that no kernel makes is not followed for ever."""
    host.device("dm-5", dm__uuid="LVM-abcdef")
    host.over("dm-5", "dm-5")
    assert host.on("/dev/dm-5") == ["/dev/dm-5"]


def test_memory_stays_in_memory_unless_it_is_written_back(host: Host) -> None:
    """Compressed memory is no disk; one that has a disk behind it is as plain as any."""
    host.device("zram0", backing_dev="none")
    host.device("zram1", backing_dev="/dev/sda3")
    host.device("zram2")
    assert host.on("/dev/zram0") == []
    assert host.on("/dev/zram1") == ["/dev/zram1"]
    assert host.on("/dev/zram2") == []


def test_a_file_is_as_safe_as_its_file_system(host: Host, tmp_path: Path) -> None:
    """A swap file counts by the device under it; one of which nothing is known is plain."""
    area = tmp_path / "swap file"
    area.touch()
    name = str(area).replace(" ", "\\040")
    assert host.on(name) == [str(area)]
    number = area.stat().st_dev
    folder = host.sys / "dev/block" / f"{os.major(number)}:{os.minor(number)}"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(host.device("dm-6", dm__uuid=LUKS))
    assert host.on(name) == []


def _try_out(accepted: Collection[str]) -> dict[str, str]:
    async def run() -> dict[str, str]:
        streams = StreamBridges()
        try:
            roots = cache() / "roots"
            return await selftest.self_test(roots, own(), streams, frozenset(accepted))
        finally:
            streams.close()

    return asyncio.run(run())


def test_plain_swap_is_refused_before_anything_starts(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` refuses by the layer's name, and goes on where that name is accepted."""
    host.device("sda2", partition="2")
    monkeypatch.setattr(swap, "SYS", host.sys)
    monkeypatch.setattr(swap, "SWAPS", host.swaps)
    others = set(JAIL_LAYERS) - {"swap"}
    assert _try_out(others)["swap"] == "held", "the control: without swap nothing is missing"
    host.on("/dev/sda2")
    with pytest.raises(LayerMissing, match=r"swap \(not encrypted: '/dev/sda2'\)") as refused:
        _try_out(others)
    assert '"swap"' in refused.value.fix
    assert _try_out(JAIL_LAYERS)["swap"] == "missing: not encrypted: '/dev/sda2'"
