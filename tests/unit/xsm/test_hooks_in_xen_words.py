"""The hook table asks only what Xen's FLASK knows."""

from __future__ import annotations

from skerry.xsm.classes import XEN_CLASSES
from skerry.xsm.hooks import HOOKS


def test_class_table_has_the_counts_of_xen_4_17() -> None:
    """Xen 4.17 has 13 classes and 175 permissions, none twice in a class."""
    assert len(XEN_CLASSES) == 13
    assert sum(len(permissions) for permissions in XEN_CLASSES.values()) == 175
    assert all(len(set(p)) == len(p) <= 32 for p in XEN_CLASSES.values())


def test_every_hook_asks_for_permissions_that_xen_has() -> None:
    """Each question of each hook names a class of Xen's and permissions of that class."""
    for hook in HOOKS.values():
        assert hook.asks, hook.name
        for question in hook.asks:
            assert set(question.permissions) <= set(XEN_CLASSES[question.tclass]), hook.name
            assert question.permissions == tuple(sorted(question.permissions))
