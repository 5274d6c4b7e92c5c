"""What the user writes: system.toml as a frozen, validated model."""
