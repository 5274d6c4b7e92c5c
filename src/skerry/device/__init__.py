"""I/O partitions: resources served to domains."""
