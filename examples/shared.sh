#!/bin/bash
# A shared filesystem in a temporary directory: two mounts that see one tree, a server that is killed below them, a check.
# Nothing is left behind. Needs FUSE; runs as anybody who may mount with it.
set -euo pipefail
work=$(mktemp -d)
export XDG_CONFIG_HOME=$work/config XDG_DATA_HOME=$work/data XDG_STATE_HOME=$work/state XDG_RUNTIME_DIR=$work/run
export BLOCKYARD_CONFIG=$work/config/blockyard.toml
mkdir -m 700 "$work/run"
pool=file://$work/pool

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
serve() {
    local fifo=$work/ready
    rm -f "$fifo" && mkfifo "$fifo"
    blockyard metadata-server "$pool/files" --listen "unix:$work/run/server" --data-dir "$work/metadata" --ready-fd 3 3>"$fifo" &
    server=$!
    read -r _ <"$fifo"
}
finish() {
    {
        for mount in a b; do mountpoint -q "$work/$mount" && blockyard umount "$work/$mount"; done
        [ -n "${server:-}" ] && kill "$server" && wait "$server"
        rm -rf "$work"
    } 2>/dev/null || true
}
trap finish EXIT

say "A filesystem in a pool, its metadata server, and two mounts as two machines would have them."
run blockyard pool create "$pool"
run blockyard fs create "$pool/files"
serve
mkdir "$work/a" "$work/b"
run blockyard mount "$pool/files" "$work/a" --server "unix:$work/run/server"
run blockyard mount "$pool/files" "$work/b" --server "unix:$work/run/server"

say "What one writes the other reads, without anybody closing a file."
exec 4>"$work/a/diary"
echo "dear diary" >&4
run cat "$work/b/diary"
echo "still open" >&4
run tail -n 1 "$work/b/diary"
exec 4>&-
run mv "$work/b/diary" "$work/b/book"
run ls "$work/a"

say "The server is killed while a tree is copied. The mounts wait for the next one, and nothing is lost."
cp -r "$(dirname "$0")/../core" "$work/a/core" &
copy=$!
kill -9 "$server"
wait "$server" 2>/dev/null || true
serve
wait "$copy"
run diff -r --exclude=__pycache__ "$(dirname "$0")/../core" "$work/b/core"
echo "the same on the other mount"

say "Unmount, and check the tree against the pool."
run blockyard umount "$work/a"
run blockyard umount "$work/b"
run blockyard fs check "$pool/files" --data-dir "$work/metadata"
kill "$server"
wait "$server"
server=
run blockyard pool df "$pool"
say "Done."
