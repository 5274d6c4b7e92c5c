"""The control socket and who may call what."""
