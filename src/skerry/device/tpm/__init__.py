"""The TPM of a domain: one jailed swtpm for each use, its state under a key of the node's."""
