# What the demos share: each command is shown, then what came back. Sourced, from the root of the
# checkout, by a script under `set -eu`; what it starts is ended when that script ends.
# shellcheck shell=sh

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
# Leaves the number of the refusal's record in $record, if it has one.
refused() {
    show "$@"
    status=0
    said=$("$@" 2>&1) || status=$?
    printf '%s\n' "$said"
    [ "$status" -eq 3 ] || fail "expected a refusal (exit code 3), got $status"
    # shellcheck disable=SC2034  # for the script that sources this
    record=$(printf '%s\n' "$said" | sed -n 's/^  record: *//p')
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

[ -x .venv/bin/skerry ] || fail ".venv/bin/skerry is missing; ./run demo sets it up"
mkdir -m 755 "$SKERRY_HOME" 2>/dev/null || { [ -O "$SKERRY_HOME" ] && [ ! -L "$SKERRY_HOME" ]; } ||
    fail "$SKERRY_HOME exists and is not a directory of yours; remove it"
forget
rm -rf "$SKERRY_HOME/state"
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
