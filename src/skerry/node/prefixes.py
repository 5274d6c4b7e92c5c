"""What the names begin with under which the supervisor holds what is a node's.

The rule: a new node knows by the name alone what each thing is that the dead one has left.
"""

OWN = "n/"
"""The node's own: its journal's token and the lock of its uids."""

DOMAIN = "d/"
"""A domain's process; its name follows, and what tells its lives apart."""

TWIN = "c/"
"""A channel's twin; its number and side follow."""

RELAY = "r/"
"""A channel's relay; its number follows."""
