"""Building the image from a small stand-in for Debian's kernel package, without a network."""

import gzip
import lzma
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry.errors import NotFound, SkerryError
from skerry.image import kernel, store
from skerry.image.cache import locked
from skerry.image.minimal import build_minimal
from tests.support.kernel_package import ELF, VERSION, Debian, bzimage, lz4, module, zstd


def unpacked(image: store.Image, target: Path) -> Path:
    """Unpack an image's initramfs."""
    target.mkdir()
    subprocess.run(
        ["cpio", "-id", "--quiet"], input=image.initrd.read_bytes(), cwd=target, check=True
    )
    return target


def test_the_same_inputs_give_the_same_bytes(debian: Debian, tmp_path: Path) -> None:
    """Two builds in two caches agree in every file and in the digest."""
    one, other = build_minimal(tmp_path / "a"), build_minimal(tmp_path / "b")
    assert debian.downloads() == 2
    assert one.digest == other.digest
    for left, right in ((one.kernel, other.kernel), (one.initrd, other.initrd)):
        assert left != right
        assert left.read_bytes() == right.read_bytes()
    assert one.kernel.read_bytes() == ELF
    store.verify(one)


def test_a_second_build_does_no_work_and_a_changed_input_does(
    debian: Debian, tmp_path: Path
) -> None:
    """The cache answers until the package changes; then there is a new image beside the old."""
    stages: list[str] = []
    first = build_minimal(tmp_path / "a")
    assert build_minimal(tmp_path / "a", progress=lambda s, _f: stages.append(s)) == first
    assert stages == ["look up", "done"]
    (debian.tree / "kernel/virtio/virtio.ko").write_bytes(module("virtio_ring") + b"new")
    debian.publish()
    (debian.home / "lists/new").touch()
    (tmp_path / "a/packages/kernel_1.deb").unlink()
    second = build_minimal(tmp_path / "a")
    assert second.digest != first.digest
    assert first.initrd.exists()
    assert store.load(tmp_path / "a", "minimal") == second


def test_modules_are_loaded_after_what_they_need(debian: Debian, tmp_path: Path) -> None:
    """The order in the image follows `depends=`; built-in drivers are absent, xz is unpacked."""
    root = unpacked(build_minimal(tmp_path / "a"), tmp_path / "root")
    order = (root / "lib/modules/order").read_text().split()
    assert order == ["virtio_ring", "virtio", "virtio_pci", "virtio_mmio", "qemu_fw_cfg"]
    assert (root / "lib/modules/0x0001").read_text().split() == ["failover", "virtio_net"]
    assert (root / "lib/modules/0x0002").read_text().split() == ["virtio_blk"]
    assert (root / "lib/modules/qemu_fw_cfg.ko").read_bytes() == module("")


def test_a_merged_usr_gives_the_same_initramfs(debian: Debian, tmp_path: Path) -> None:
    """Debian 13 ships its modules under `usr/lib`; the image does not care."""
    first = build_minimal(tmp_path / "a")
    (debian.home / "deb/usr").mkdir()
    (debian.home / "deb/lib").rename(debian.home / "deb/usr/lib")
    debian.publish()
    assert build_minimal(tmp_path / "b").initrd.read_bytes() == first.initrd.read_bytes()


def test_a_driver_that_is_nowhere_is_an_error(debian: Debian, tmp_path: Path) -> None:
    """An image that could not see its ports is not built."""
    (debian.tree / "kernel/virtio/virtio_mmio.ko").unlink()
    debian.publish()
    with pytest.raises(SkerryError, match="virtio_mmio"):
        build_minimal(tmp_path / "a")
    with pytest.raises(NotFound, match="build it"):
        store.load(tmp_path / "a", "minimal")


@pytest.mark.parametrize("place", ["boot/vmlinuz-{}", "lib/modules/{}/modules.builtin"])
def test_a_link_of_the_kernel_package_reaches_no_file_of_the_host(
    place: str, debian: Debian, tmp_path: Path
) -> None:
    """It is neither read nor changed, though what it leads to would do; as a file it is taken."""
    assert build_minimal(tmp_path / "a")
    file = debian.home / "deb" / place.format(VERSION)
    host = tmp_path / "host"
    file.rename(host)
    host.chmod(0o600)
    file.symlink_to(host)
    debian.publish()
    with pytest.raises(SkerryError, match="kernel package holds"):
        build_minimal(tmp_path / "b")
    assert host.stat().st_mode & 0o777 == 0o600


def test_every_uid_can_read_an_image_and_nobody_change_it(debian: Debian, tmp_path: Path) -> None:
    """Files 0444 in directories 0755, whatever the caller's umask."""
    image = build_minimal(tmp_path / "a")
    for path in (image.kernel, image.bzimage, image.initrd):
        assert path.stat().st_mode & 0o777 == 0o444
    for path in (image.kernel.parent, tmp_path / "a"):
        assert path.stat().st_mode & 0o777 == 0o755
    assert not list((tmp_path / "a").glob(".work-*"))


def test_two_builders_wait_for_each_other(debian: Debian, tmp_path: Path) -> None:
    """One download and one image come of two builds at a time."""
    results: list[store.Image] = []
    threads = [
        threading.Thread(target=lambda: results.append(build_minimal(tmp_path / "a")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    assert debian.downloads() == 1


def test_a_package_other_than_the_lists_say_is_refused(debian: Debian, tmp_path: Path) -> None:
    """A download whose hash differs is removed, not used."""
    debian.tool("apt-get", "echo evil >kernel_1_amd64.deb")
    with pytest.raises(SkerryError, match="not what apt's signed lists say"):
        build_minimal(tmp_path / "a")
    assert not list((tmp_path / "a/packages").glob("*.deb"))


def test_without_lists_the_error_says_what_to_run(debian: Debian, tmp_path: Path) -> None:
    """A machine that never ran `apt-get update` gets that advice."""
    debian.tool("apt-cache", "echo 'E: No packages found' >&2; exit 100")
    with pytest.raises(SkerryError, match="apt-get update"):
        build_minimal(tmp_path / "a")


def test_a_cache_that_others_may_write_is_refused(debian: Debian, tmp_path: Path) -> None:
    """Who can write the cache chooses the kernel; the same cache is fine once it is closed."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(SkerryError, match="may be written by others"):
        build_minimal(tmp_path / "a")
    (tmp_path / "a").chmod(0o755)
    assert build_minimal(tmp_path / "a")


def test_a_changed_file_is_found(debian: Debian, tmp_path: Path) -> None:
    """`verify` names the file that is no longer what was built."""
    image = build_minimal(tmp_path / "a")
    store.verify(image)
    image.initrd.chmod(0o644)
    image.initrd.write_bytes(b"other")
    with pytest.raises(SkerryError, match="initrd changed"):
        store.verify(image)


@pytest.mark.parametrize(
    "raw",
    [b"", bytes(2048), bzimage(b"????????"), bzimage(lz4(b"no ELF"))],
    ids=["empty", "zeros", "unknown packing", "no kernel"],
)
def test_a_file_that_holds_no_kernel_is_an_error(raw: bytes, tmp_path: Path) -> None:
    """Damage is named, and a whole bzImage is not mistaken for damage."""
    (tmp_path / "good").write_bytes(bzimage(lz4(ELF)))
    kernel.vmlinux(tmp_path / "good", tmp_path / "out")
    (tmp_path / "bad").write_bytes(raw)
    with pytest.raises(SkerryError):
        kernel.vmlinux(tmp_path / "bad", tmp_path / "out")


@pytest.mark.parametrize("pack", [lzma.compress, lz4, zstd], ids=["xz", "lz4", "zstd"])
def test_kernels_are_unpacked_whatever_packed_them(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Each packing that Debian has used for a kernel is known."""
    (tmp_path / "bz").write_bytes(bzimage(pack(ELF)))
    kernel.vmlinux(tmp_path / "bz", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == ELF


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, lz4, zstd])
def test_a_kernel_beyond_the_limit_is_an_error(
    pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What unpacks to more than the limit is named, not cut off, and not written either; the
    control: at the default."""
    (tmp_path / "bz").write_bytes(bzimage(pack(ELF)))
    kernel.vmlinux(tmp_path / "bz", tmp_path / "out")
    monkeypatch.setattr(kernel, "VMLINUX_MAX", 1000)
    more = tmp_path / "more"
    with pytest.raises(SkerryError, match="holds more than"):
        kernel.vmlinux(tmp_path / "bz", more)
    assert not more.exists() or more.stat().st_size <= 1000


def test_two_builders_may_make_the_cache_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that another builder made between the look and the making is no error."""
    cache = tmp_path / "cache"
    cache.mkdir()
    looked = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: path != cache and looked(path))
    with locked(cache):
        assert (cache / "lock").exists()
