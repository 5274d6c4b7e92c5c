"""The security-module framework: pure, no input or output, no clock, no globals."""
