"""A domain in memory with real descriptors, for tests by the thousand."""
