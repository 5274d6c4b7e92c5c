#!/bin/sh
# The main job, shown: what the policy lets share exchanges bytes, the rest is refused with a
# reason, the Chinese Wall keeps the second bank out, and the audit trail holds it all.
# Started by ./run demo, which sets everything up first.
set -eu

# The root of the checkout, so that each command can be typed as it is shown.
CDPATH='' cd -- "$(dirname -- "$0")/../.."
PATH=$(pwd -P)/.venv/bin:$PATH
# A node of its own, so that the demo meets no system that already runs here. Not under a home:
# the domains' uids must reach their jails.
SKERRY_HOME=/var/tmp/skerry-demo-$(id -u)
export PATH SKERRY_HOME

step() { printf '\n# %s\n' "$*"; }
show() { printf '$ %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

run() {
    show "$@"
    "$@"
}

# Runs a command that the policy must refuse: exit code 3, and the reason on standard error.
refused() {
    show "$@"
    status=0
    "$@" 2>&1 || status=$?
    [ "$status" -eq 3 ] || fail "expected a refusal (exit code 3), got $status"
}

# sends FROM TO PORT TEXT: one domain writes a line into a channel, the other reads it.
sends() {
    show "skerry exec $1 -- sh -c 'echo \"$4\" > /dev/virtio-ports/$3'"
    skerry exec "$1" -- sh -c "echo '$4' > /dev/virtio-ports/$3"
    show "skerry exec $2 -- timeout 20 head -n 1 /dev/virtio-ports/$3"
    got=$(skerry exec "$2" -- timeout 20 head -n 1 "/dev/virtio-ports/$3") ||
        fail "$2 could not read from the port $3"
    printf '%s\n' "$got"
    [ "$got" = "$4" ] || fail "$2 read something else than $1 wrote"
}

forget() { skerry down >/dev/null 2>&1 || true; }
end() {
    status=$?
    trap - EXIT
    forget
    [ "$status" -eq 0 ] || printf 'demo: failed; the trail is in %s\n' "$SKERRY_HOME" >&2
    exit "$status"
}

mkdir -m 755 "$SKERRY_HOME" 2>/dev/null || { [ -O "$SKERRY_HOME" ] && [ ! -L "$SKERRY_HOME" ]; } ||
    fail "$SKERRY_HOME exists and is not a directory of yours; remove it"
forget
rm -rf "$SKERRY_HOME/state"
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

step "Bank A, its bookkeeping and the broker start as virtual machines, each in its jail"
run skerry up examples/two-banks/system.toml --detach
run skerry ps
run skerry channels

step "Bank A and the broker may share: bytes cross"
sends bank-a broker orders-a "buy 100 at 42"

step "Bookkeeping of bank A shares with its bank alone: a channel to the broker is refused"
refused skerry connect bookkeeping-a broker

step "Bank B competes with bank A, which runs: the Chinese Wall refuses the start"
refused skerry start bank-b

step "Nothing of bank A runs any more: bank B may start, and the broker serves it"
run skerry stop bank-a
run skerry stop bookkeeping-a
run skerry start bank-b
sends bank-b broker orders-b "sell 7 at 43"

step "Now bank A is the one that is kept out"
refused skerry start bank-a

step "Every decision is in the audit trail, and the chain of its records holds"
run skerry audit tail
run skerry audit verify

step "Everything is stopped again"
run skerry down
cat <<TEXT

demo: done; everything above ran as it should, and nothing of it runs any more.
demo: skerry is .venv/bin/skerry; the trail and the guest's image stay in $SKERRY_HOME
TEXT
