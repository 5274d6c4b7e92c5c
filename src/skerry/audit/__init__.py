"""The audit trail: records, the hash chain, the writer."""
