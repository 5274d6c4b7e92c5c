"""Minimal guest images: kernel and initramfs, built unprivileged, cached and reproducible."""
