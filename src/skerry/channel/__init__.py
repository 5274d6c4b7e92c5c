"""The bridges between domains: each kind mints, cuts and drains."""
