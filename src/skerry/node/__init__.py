"""Puts a host together: the monitor with its machines, channels, decider and trail."""
