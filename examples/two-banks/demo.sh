#!/bin/sh
# The main job, shown: what the policy lets share exchanges bytes, the rest is refused with a
# reason, the Chinese Wall keeps the second bank out, and the audit trail holds it all.
# Started by ./run demo, which sets everything up first.
set -eu

# The root of the checkout, so that each command can be typed as it is shown.
CDPATH='' cd -- "$(dirname -- "$0")/../.."
. examples/play.sh

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
