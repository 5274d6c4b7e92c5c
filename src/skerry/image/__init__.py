"""Minimal guest images."""
