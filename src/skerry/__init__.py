"""Skerry: virtual machines that can exchange nothing but what a mandatory policy allows."""

__version__ = "0.1.0"
