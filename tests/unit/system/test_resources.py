"""What a system file says of resources and of who uses them; every mistake at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.system.load import parse_system
from skerry.system.model import ChannelSpec, ResourceSpec

FILE = Path("/srv/x/system.toml")

GOOD = """name = "x"
policy = "p"
[resources.vault]
kind = "disk"
label = "vault"
file = "vault.img"
size = "64M"
[resources.web]
kind = "uplink"
label = "web"
allow = ["example.org:443", "192.0.2.1:80"]
rate = "1M"
[resources.chip]
kind = "tpm"
label = "chip"
[domains.a]
label = "a"
uses = ["vault", "web", "chip"]
[domains.b]
label = "b"
uses = ["vault:ro"]
[[channels]]
kind = "stream"
from = "a"
to = "b"
name = "talk"
"""


def test_what_a_domain_uses_is_a_channel_to_a_resource() -> None:
    """Its kind and its name are the resource's; `:ro` makes it one-way."""
    system = parse_system(GOOD, FILE)
    assert system.resources["vault"] == ResourceSpec(
        "vault", "disk", "vault", file="/srv/x/vault.img", size=64 << 20
    )
    assert system.resources["web"].rate == 1 << 20
    assert system.channels == (
        ChannelSpec("stream", "a", "b", "talk"),
        ChannelSpec("disk", "a", "vault", "vault"),
        ChannelSpec("uplink", "a", "web", "web"),
        ChannelSpec("tpm", "a", "chip", "chip"),
        ChannelSpec("disk", "b", "vault", "vault", one_way=True),
    )


def test_a_domain_has_slots_only_where_something_needs_one() -> None:
    """A TPM and a stream need none, so that such a domain starts on the quickest board."""
    system = parse_system(GOOD.replace('["vault", "web", "chip"]', '["chip"]'), FILE)
    assert not system.domains["a"].slots
    assert system.domains["b"].slots


def test_an_uplink_that_a_domain_serves_is_a_link_to_it() -> None:
    """The user's own domain stands in the helper's place."""
    served = GOOD.replace('allow = ["example.org:443", "192.0.2.1:80"]', 'served-by = "b"')
    served = served.replace('rate = "1M"\n', "").replace('label = "web"\n', "")
    system = parse_system(served, FILE)
    assert ChannelSpec("link", "a", "b", "web") in system.channels
    assert "web" not in system.resources


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "disk"\n', "", "3: missing key 'kind' in resources.vault"),
        ('label = "vault"\n', "", "missing key 'label' in resources.vault"),
        ('kind = "disk"', 'kind = "tape"', "4: kind must be"),
        ('file = "vault.img"\n', "", "missing key 'file' in resources.vault"),
        ('file = "vault.img"', "file = 7", "6: file must name a file"),
        ('size = "64M"', 'size = "64"', "7: size must be a size with its unit"),
        (
            "resources.vault]",
            f"resources.{'v' * 21}]",
            "4: a disk's name has 20 characters at most",
        ),
        ('size = "64M"', "shared = true\ndiscard = true", "7: only a raw disk without discard"),
        ('size = "64M"', 'shared = true\nformat = "qcow2"', "7: only a raw disk without discard"),
        (
            "[resources.web]",
            '[resources.again]\nkind = "disk"\nlabel = "v"\nfile = "./vault.img"\n[resources.web]',
            "the disks vault and again have the same file",
        ),
        ('size = "64M"', 'allow = ["a:1"]', "7: allow is no key of a resource of the kind disk"),
        ("[resources.vault]", "[resources.a]", "3: a is a domain already"),
        ("[resources.vault]", "[resources.Vault]", "3: a resource's name must be"),
        ("example.org:443", "example.org", "11: allow holds"),
        ("example.org:443", "example.org:70000", "11: allow holds"),
        ("example.org:443", "*.org:443", "11: allow holds"),
        ("example.org:443", "a" * 64 + ".org:443", "11: allow holds"),
        ("example.org:443", "[2001:db8::1]:443", "11: an uplink speaks IPv4"),
        ('rate = "1M"', 'resolvers = ["ns.test:53"]', '12: resolvers holds "IPV4-ADDRESS:PORT"'),
        ('rate = "1M"', 'resolvers = ["10.0.0.1:0"]', '12: resolvers holds "IPV4-ADDRESS:PORT"'),
        (
            'rate = "1M"',
            f"resolvers = {[f'10.0.0.{n}:53' for n in range(4)]}",
            "12: 4 name servers",
        ),
        ('"example.org:443"', str([f"a:{n}" for n in range(1, 66)])[1:-1], "11: 66 different"),
        ('size = "64M"', 'resolvers = ["10.0.0.1:53"]', "7: resolvers is no key"),
        ('allow = ["example.org:443"', 'served-by = "x"\nallow = ["a:1"', "no domain 'x'"),
        ('allow = ["example.org:443"', 'served-by = "b"\nallow = ["a:1"', "an uplink has allow"),
        (
            'allow = ["example.org:443", "192.0.2.1:80"]\nrate = "1M"',
            'served-by = "b"',
            "10: label is for b to have, which serves it",
        ),
        (
            'allow = ["example.org:443", "192.0.2.1:80"]',
            'served-by = "b"',
            "12: rate is for b to have, which serves it",
        ),
        (
            'allow = ["example.org:443", "192.0.2.1:80"]\nrate = "1M"',
            'served-by = "b"\nresolvers = ["10.0.0.1:53"]',
            "12: resolvers is for b to have, which serves it",
        ),
        ('uses = ["vault", ', 'uses = ["vaul", ', "no resource 'vaul'; did you mean 'vault'?"),
        ('uses = ["vault", ', 'uses = ["vault", "vault:ro", ', "uses names 'vault' twice"),
        ('"chip"]', '"chip:ro"]', "only a disk can be read-only"),
        ('name = "talk"', 'name = "vault"', "has two ports named 'vault'"),
        ('uses = ["vault:ro"]', 'uses = ["vault:ro"]\nboard = "q35"', 'needs slots: board = "pc"'),
        ('name = "talk"', 'name = "talk"\nsize = "1M"', "a memory has a size"),
        ('kind = "stream"', 'kind = "memory"', "a memory has a size"),
        ('kind = "stream"', 'kind = "link"\none-way = true', "a link goes both ways"),
    ],
)
def test_each_mistake_is_named(old: str, new: str, words: str) -> None:
    """One clear line for each; a resource that is wrong is never read as another."""
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        parse_system(GOOD.replace(old, new, 1), FILE)
    lines = [f"{problem.line}: {problem.message}" for problem in caught.value.problems]
    assert any(words in line for line in lines), lines
