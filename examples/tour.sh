#!/bin/bash
# A tour of Blockyard in a temporary directory: a pool, an image, a server, real clients. Nothing is left behind.
# Runs as anybody; as root it also puts a filesystem on the image and mounts it.
set -euo pipefail
work=$(mktemp -d)
export XDG_CONFIG_HOME=$work/config BLOCKYARD_CONFIG=$work/config/blockyard.toml
pool=file://$work/pool

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
finish() {
    {
        mountpoint -q "$work/mnt" && umount "$work/mnt"
        [ -n "${loop:-}" ] && losetup -d "$loop"
        mountpoint -q "$work/disk" && fusermount3 -u "$work/disk"
        [ -f "$work/nbd.pid" ] && kill "$(cat "$work/nbd.pid")"
        rm -rf "$work"
    } 2>/dev/null || true
}
trap finish EXIT

say "A pool is a place for objects and a key that never goes there."
run blockyard pool create "$pool"

say "An image of 10 GiB takes no room until something is written."
run blockyard image create "$pool/disk" 10G
run blockyard image ls "$pool"

say "Serve it, and look at it with a client that knows nothing of us."
run blockyard nbd "$pool/disk" --socket "$work/disk.sock" --daemon "$work/nbd.pid"
uri="nbd+unix:///disk?socket=$work/disk.sock"
run nbdinfo "$uri"

say "Copy 64 MiB in over four connections, and out again: the same bytes."
head -c 48M /dev/urandom >"$work/in"
head -c 16M /dev/zero >>"$work/in"
run nbdcopy --connections=4 --flush "$work/in" "$uri"
run nbdcopy --connections=4 "$uri" "$work/out"
cmp -n $((64 << 20)) "$work/in" "$work/out"
echo "equal"

if [ "$(id -u)" = 0 ] && [ -e /dev/fuse ] && loop=$(losetup -f 2>/dev/null); then
    say "A filesystem on it, through FUSE and a loop device (with the kernel's nbd: blockyard map)."
    mkdir "$work/disk" "$work/mnt"
    run nbdfuse "$work/disk" "$uri" &
    for _ in $(seq 100); do [ -e "$work/disk/nbd" ] && break; sleep 0.1; done
    run losetup "$loop" "$work/disk/nbd"
    run mkfs.ext4 -q "$loop"
    run mount "$loop" "$work/mnt"
    cp -r "$(dirname "$0")" "$work/mnt/examples"
    run ls "$work/mnt/examples"
    run umount "$work/mnt"
    run e2fsck -fn "$loop"
    losetup -d "$loop"
    loop=
    fusermount3 -u "$work/disk"
    wait
fi

say "Stop the server. What was written is compressed, encrypted and signed in the pool."
server=$(cat "$work/nbd.pid")
kill "$server"
while kill -0 "$server" 2>/dev/null; do sleep 0.1; done
rm -f "$work/nbd.pid"
run blockyard image du "$pool/disk"
run blockyard pool df "$pool"
find "$work/pool" -type f | sed "s|$work/||" | sort | head -12
if grep -rqa "$(head -c 64 "$0" | tail -c 40)" "$work/pool"; then
    echo "plaintext in the pool!" >&2
    exit 1
fi
say "Done."
