#!/bin/sh
# Xen's own default FLASK policy, unmodified, governs QEMU machines: two ordinary domains exchange
# bytes, an isolated one is kept apart from both, and every refusal says why.
set -eu

# The root of the checkout, so that each command can be typed as it is shown.
CDPATH='' cd -- "$(dirname -- "$0")/../.."
. examples/play.sh

example=examples/xen-policy
policy=$example/xen.30
domU=system_u:system_r:domU_t
isolated=system_u:system_r:isolated_domU_t

if [ -f "$policy" ]; then
    step "Xen's default policy is there, compiled by an earlier run: $policy"
else
    step "Xen's default policy comes from Debian's source package and is compiled as it stands"
    run "$example/fetch.sh" "$example"
fi

step "The policy alone is asked: an ordinary domain may map what another one grants it"
run skerry policy decide --policy "$policy" "$domU" "$domU" grant map_read

step "No rule lets it reach an isolated domain; a constraint keeps the domains of two users apart"
refused skerry policy decide --policy "$policy" "$domU" "$isolated" grant map_read
refused skerry policy decide --policy "$policy" user_1:vm_r:domU_t user_2:vm_r:domU_t grant map_read

step "Two ordinary domains and an isolated one start as virtual machines, each in its jail"
run skerry up "$example/system.toml" --detach
run skerry ps

step "web and shop are both domU_t: bytes cross"
sends web shop orders "two books, please"

step "The vault is isolated_domU_t: it may have a channel to neither of them"
refused skerry connect web vault
first=$record
refused skerry connect vault shop

step "The guest has no port for what was refused, only the one of its agent"
run skerry exec vault -- ls /dev/virtio-ports

step "Each question that Xen would have asked is in the trail, with its answer"
run skerry why "$first"
run skerry audit verify

step "The refusals as audit2allow and ausearch read them"
run skerry audit export --format avc

step "Everything is stopped again"
run skerry down
cat <<TEXT

demo: done; everything above ran as it should, and nothing of it runs any more.
demo: skerry is .venv/bin/skerry; the policy is $policy; the trail stays in $SKERRY_HOME
TEXT
