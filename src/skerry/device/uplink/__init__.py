"""Uplinks: a domain's way out to chosen destinations, each use with helpers of its own."""
