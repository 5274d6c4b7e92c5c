"""What runs a domain: QEMU or the simulator."""
