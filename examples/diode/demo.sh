#!/bin/sh
# A data diode: a file goes from the low domain to the high one, its digest is the same on both
# sides, and nothing goes back, neither by the policy nor by the channel itself.
set -eu

# The root of the checkout, so that each command can be typed as it is shown.
CDPATH='' cd -- "$(dirname -- "$0")/../.."
. examples/play.sh

port=/dev/virtio-ports/up

# in_guest DOMAIN SCRIPT: shows and runs a script in a domain; leaves its output in $said.
in_guest() {
    show "skerry exec $1 -- sh -c '$2'"
    said=$(skerry exec "$1" -- sh -c "$2") || fail "the command failed in $1"
    [ -z "$said" ] || printf '%s\n' "$said"
}

step "Low and high start as virtual machines; one stream goes from low to high"
run skerry up examples/diode/system.toml --detach
run skerry channels --verbose

step "A file of a million bytes is made in low"
in_guest low 'head -c 1000000 /dev/urandom > /tmp/file; sha256sum < /tmp/file'
sent=$said

step "It is sent up; high takes what comes and computes the digest on its side"
in_guest low "(cat /tmp/file > $port) > /dev/null 2>&1 &"
in_guest high "timeout 60 head -c 1000000 $port > /tmp/file; sha256sum < /tmp/file"
[ "$said" = "$sent" ] || fail "high got something else than low sent"

step "What high writes into the same port goes nowhere: low reads nothing in five seconds"
in_guest high "echo secret > $port"
in_guest low "timeout 5 head -n 1 $port 2> /dev/null | wc -c"
[ "$said" = 0 ] || fail "something came back"

step "Another channel does not help: the policy has no rule for one that would carry back"
refused skerry connect high low --one-way
refused skerry connect low high
run skerry why "$record"

step "High is ended: low is not told, its port stays"
run skerry kill high
in_guest low "ls /dev/virtio-ports"
run skerry channels --verbose

step "Everything is stopped again"
run skerry down
cat <<TEXT

demo: done; everything above ran as it should, and nothing of it runs any more.
demo: skerry is .venv/bin/skerry; the trail stays in $SKERRY_HOME
TEXT
