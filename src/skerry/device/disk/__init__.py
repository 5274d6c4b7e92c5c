"""Disks: images served to domains by a storage daemon of one use each."""
