#!/bin/bash
# An image in somebody else's store: S3 or Ceph. Give the URL of a place where no pool is yet.
#   AWS_ENDPOINT_URL=… AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… examples/remote.sh 's3://bucket/prefix'
#   examples/remote.sh 'rados://pool/prefix?conf=/etc/ceph/ceph.conf'
set -euo pipefail
url=${1:?give a pool URL, such as s3://bucket/prefix}
image=${url%%\?*}/disk
case $url in *\?*) image=$image?${url#*\?} ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_CONFIG_HOME=$work/config

run() { printf '$ %s\n' "$*"; "$@"; }

run blockyard pool create "$url"
run blockyard image create "$image" 1T
head -c 24M /dev/urandom >"$work/in"
head -c 8M /dev/zero >>"$work/in"

# Serve the image for one command: the copy goes in over four connections. Opened frames stay on a local disk, encrypted.
run blockyard nbd "$image" --socket "$work/sock" -o cache_dir="$work/cache" -o cache_size=1G \
    --run "nbdcopy --connections=4 --flush $work/in \"\$uri\""
# Read it back read-only: that needs no lock, and works from any machine with the key.
run blockyard nbd "$image" --socket "$work/sock" --readonly \
    --run "qemu-img compare -f raw -F raw $work/in \"\$uri\" || nbdcopy \"\$uri\" - | cmp -n $((32 << 20)) - $work/in"
run blockyard image du "$image"
run blockyard pool df "$url"
run blockyard image rm "$image"
echo "Done."
