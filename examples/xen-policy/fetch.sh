#!/bin/sh
# Fetches Xen's default FLASK policy out of Debian's source package `xen` and compiles it as it
# stands. Needs no root and changes nothing of this machine: apt works on lists of its own in a
# throw-away directory, made from the machine's own sources, and checks hashes and signatures.
set -eu

usage="usage: fetch.sh OUTDIR    leaves OUTDIR/xen.24, OUTDIR/xen.30 and OUTDIR/source"

say() { printf 'fetch: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

[ $# -eq 1 ] || { printf '%s\n' "$usage" >&2; exit 2; }
case $1 in -*) printf '%s\n' "$usage"; exit 2 ;; esac
lacking=
for pair in apt-get:apt m4:m4 make:make checkpolicy:checkpolicy xz:xz-utils tar:tar; do
    command -v "${pair%%:*}" >/dev/null || lacking="$lacking ${pair#*:}"
done
[ -z "$lacking" ] || fail "not on this machine; install: apt-get install$lacking"

mkdir -p -- "$1"
out=$(CDPATH='' cd -- "$1" && pwd -P)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The machine's sources again, asked for source packages; both of apt's formats.
parts=$work/sources.list.d
mkdir -p "$parts" "$work/lists/partial" "$work/cache/archives/partial" "$work/download"
eval "$(apt-config shell own_list Dir::Etc::sourcelist/f own_parts Dir::Etc::sourceparts/d)"
number=0
for file in "$own_list" "$own_parts"/*.list "$own_parts"/*.sources; do
    [ -f "$file" ] || continue
    number=$((number + 1))
    case $file in
        *.sources)
            sed 's/^[Tt]ypes:.*/Types: deb-src/' "$file" >"$parts/$number.sources" ;;
        *)
            sed -n 's/^[[:space:]]*deb\(-src\)\{0,1\}[[:space:]]\{1,\}/deb-src /p' "$file" |
                grep -v '[[:space:]]cdrom:' >"$parts/$number.list" || : ;;
    esac
done
[ "$number" -gt 0 ] || fail "apt has no sources on this machine (/etc/apt/sources.list.d is empty)"

with() {
    tool=$1
    shift
    "$tool" -q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$parts" \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" \
        -o APT::Sandbox::User="$(id -un)" "$@"
}

say "reading apt's lists of source packages"
# Some other source of the machine may have none; what counts is whether xen is found.
with apt-get update >"$work/log" 2>&1 || :
versions=$(with apt-cache showsrc --only-source xen 2>>"$work/log" | sed -n 's/^Version: //p' |
    sort -rVu)
[ -n "$versions" ] || { cat "$work/log" >&2; fail "apt found no source package xen; see above"; }
cd "$work/download"
# A mirror may lack the newest version that its lists name.
for version in $versions; do
    say "downloading the source package xen $version"
    with apt-get source --download-only "xen=$version" >>"$work/log" 2>&1 && break
    rm -f ./*
    say "it could not be downloaded"
done
set -- ./xen_*.orig.tar.*
[ -f "$1" ] || {
    why=$(sed -n 's/^E: //p' "$work/log" | head -n 1 | tr -s ' ')
    fail "no source package xen could be downloaded; try later, or with another mirror: ${why:-no word}"
}

mkdir "$work/source"
tar -x -f "$1" -C "$work/source" --strip-components=1 --no-same-owner \
    --wildcards --no-wildcards-match-slash \
    '*/tools/flask/policy' '*/xen/xsm/flask/policy' '*/COPYING' ||
    fail "the source package holds no FLASK policy"
cd "$work/source/tools/flask/policy"
for version in 24 30; do
    say "compiling the policy, binary version $version"
    make -s -f Makefile.common FLASK_BUILD_DIR="$work" XEN_FULLVERSION="$version" \
        OUTPUT_POLICY="$version" >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "see above"; }
done

rm -rf "$out/source"
cp -R "$work/source" "$out/source"
for version in 24 30; do
    cp "$work/xenpolicy-$version" "$out/xen.$version.new"
    mv "$out/xen.$version.new" "$out/xen.$version"
done
say "made $out/xen.24 and $out/xen.30"
