"""A domain in a jailed QEMU process, driven over QMP."""
