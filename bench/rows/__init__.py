"""Every row of the benchmark by its name; importing this costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from bench.measure import Row

ROWS = {
    "start-vs-bare": ("start", "start"),
    "image-minimal-s": ("image", "seconds"),
    "image-minimal-mb": ("image", "megabytes"),
    "warm-start-extra-ms": ("template", "extra"),
    "warm-start-vs-libvirt": ("template", "warm_versus_libvirt"),
    "warm-start-command-ms": ("template", "warm_command"),
    "cold-start-vs-libvirt": ("template", "cold_versus_libvirt"),
    "clones-pss-mb": ("template", "clones_pss"),
    "stream-vs-bare": ("stream", "throughput"),
    "link-vs-bare": ("link", "throughput"),
    "uplink-vs-passt": ("uplink", "throughput"),
    "oneway-vs-pipe": ("oneway", "throughput"),
    "oneway-back-kbit-s": ("oneway", "covert"),
    "memory-vs-bare": ("memory", "throughput"),
    "memory-rtt-vs-bare": ("memory", "round_trip"),
    "tpm-quote-vs-bare": ("tpm", "quote"),
    "disk-vs-bare": ("disk", "throughput"),
    "stream-core-cpu-ms": ("stream", "core_cpu"),
    "devices-core-cpu-ms": ("devices", "core_cpu"),
    "decide-cached-us": ("decide", "cached"),
    "decide-acm-us": ("decide", "uncached"),
    "ask-guest-vs-process": ("ask", "guest"),
    "ps-seconds": ("running", "ps_seconds"),
    "node-rss-mb": ("running", "node_rss"),
    "helpers-pss-mb": ("running", "helpers_pss"),
    "flask-load-s": ("flask", "load_seconds"),
    "flask-rss-mb": ("flask", "rss"),
    "flask-hit-per-s": ("flask", "hits"),
    "flask-miss-per-s": ("flask", "misses"),
    "flask-miss-vs-libsepol": ("flask", "misses_versus_libsepol"),
    "flow-ready-vs-setools": ("flow", "ready"),
    "flow-rss-vs-setools": ("flow", "rss"),
    "flow-reach-vs-setools": ("flow", "reach"),
    "flow-paths-vs-setools": ("flow", "paths"),
    "prove-ms": ("flow", "prove_ms"),
    "verify-ms": ("flow", "verify_ms"),
    "system-graph-vs-plain": ("system_flows", "graph"),
    "system-prove-ms": ("system_flows", "prove_ms"),
    "system-verify-ms": ("system_flows", "verify_ms"),
    "revoke-8k-s": ("revoke", "revoke"),
    "revoke-vm-ms": ("revoke", "revoke_vm"),
    "connect-ms": ("connect", "connect"),
    "adopt-s": ("adopt", "adopt"),
    "audit-per-s": ("audit", "per_second"),
    "audit-vs-fdatasync": ("audit", "one"),
}
"""Each row's module in this package and its function there."""


def find(name: str) -> Callable[[], Row]:
    """Return what measures a row."""
    module, function = ROWS[name]
    found: Callable[[], Row] = getattr(importlib.import_module(f"bench.rows.{module}"), function)
    return found
