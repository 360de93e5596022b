#!/bin/bash
# Snapshots, groups of them, clones and rollback, beside a server that goes on writing. In a temporary directory; nothing is left behind.
set -euo pipefail
work=$(mktemp -d)
export XDG_CONFIG_HOME=$work/config BLOCKYARD_CONFIG=$work/config/blockyard.toml
pool=file://$work/pool

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
write() { run qemu-io -f raw -c "write -P $2 0 1M" -c flush "nbd+unix:///$1?socket=$work/sock" >/dev/null; }
holds() { # read through a server of its own: a snapshot, or an image that nobody writes
    local said
    said=$(blockyard nbd "$pool/$1" --readonly --socket "$work/own" --run "qemu-io -r -f raw -c 'read -P $2 0 1M' \"\$uri\"" 2>/dev/null)
    case $said in *failed*) echo "$1 does not hold $2" >&2 && exit 1 ;; *"read 1048576"*) echo "$1 holds $2" ;; esac
}
stop() {
    local server
    server=$(cat "$work/nbd.pid")
    kill "$server"
    while kill -0 "$server" 2>/dev/null; do sleep 0.1; done
    rm -f "$work/nbd.pid"
}
finish() {
    {
        [ -f "$work/nbd.pid" ] && kill "$(cat "$work/nbd.pid")"
        rm -rf "$work"
    } 2>/dev/null || true
}
trap finish EXIT

say "Two images, and one server for both, which stays up."
run blockyard pool create "$pool" >/dev/null
for name in data log; do run blockyard image create "$pool/$name" 1G; done
run blockyard nbd "$pool" --all-images --socket "$work/sock" --daemon "$work/nbd.pid" 2>/dev/null
write data 1
write log 1

say "A snapshot: the state of now, with everything that was written. The server goes on."
run blockyard snapshot create "$pool/data@first"
write data 2
holds data@first 1

say "Both images at one moment: their snapshots are a group."
run blockyard snapshot create "$pool/data@second" "$pool/log@second"
write data 3
holds data@second 2
run blockyard snapshot ls "$pool"

say "A snapshot is served read-only, by its name."
run nbdinfo "nbd+unix:///data@first?socket=$work/sock" | grep is_read_only

say "A clone is an image of its own. It shares what it does not change, and takes no time to make."
run blockyard clone "$pool/data@first" "$pool/try"
write try 9
run blockyard image children "$pool/data"
run blockyard image info "$pool/try" | grep -E 'parent|flattened'

say "Going back: not while somebody writes it."
stop
back="blockyard snapshot rollback $pool/data@first"
if run blockyard nbd "$pool/data" --socket "$work/own" --run "qemu-io -f raw -c 'write -P 4 0 1M' \"\$uri\" && $back"; then exit 1; fi
run $back
holds data 1
holds data@second 2

say "What is protected stays, and so does an image with clones."
run blockyard snapshot protect "$pool/data@second"
if run blockyard snapshot rm "$pool/data@second"; then exit 1; fi
if run blockyard image rm --yes --force "$pool/data"; then exit 1; fi
run blockyard image rm --yes "$pool/try"
run blockyard snapshot rename "$pool/log@second" last
run blockyard snapshot rm "$pool/data@first" "$pool/log@last"
run blockyard image ls "$pool"
say "Done."
