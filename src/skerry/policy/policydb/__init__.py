"""The binary policy that checkpolicy and secilc write: from bytes to a frozen model."""
