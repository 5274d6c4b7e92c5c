"""Defects put into the product on purpose, each of which the laws must find."""

from __future__ import annotations

from collections.abc import Callable

MUTATIONS: dict[str, Callable[[], None]] = {}
