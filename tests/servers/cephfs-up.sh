#!/bin/bash
# Adds a filesystem to a Ceph that ceph-up.sh started in DIR: one MDS, two pools of 8 placement groups, for ceph-fuse -c DIR/ceph.conf.
# Does nothing if it is there already. ceph-down.sh DIR stops the MDS with the rest. Needs Debian's ceph-mds and ceph-fuse.
set -euo pipefail
directory=$(realpath "${1:?usage: cephfs-up.sh DIR}")
export CEPH_CONF=$directory/ceph.conf
for tool in ceph ceph-mds ceph-fuse; do
    command -v $tool >/dev/null || { echo "cephfs-up: $tool is missing; install Debian's ceph-common ceph-mds ceph-fuse" >&2; exit 2; }
done
[ -f "$CEPH_CONF" ] || { echo "cephfs-up: $CEPH_CONF is missing; ceph-up.sh DIR makes it" >&2; exit 2; }
ceph() { command ceph --connect-timeout 30 "$@"; }

if [ ! -s "$directory/mds.a.pid" ]; then
    mkdir -p "$directory/mds/a"
    ceph auth get-or-create mds.a mon 'allow profile mds' mgr 'allow profile mds' osd 'allow *' mds 'allow *' \
        >> "$directory/keyring"
    for pool in cephfs-metadata cephfs-data; do
        ceph osd pool create $pool 8 >/dev/null 2>&1
    done
    ceph fs new cephfs cephfs-metadata cephfs-data >/dev/null 2>&1
    ceph-mds -i a >/dev/null 2>&1
fi
for _ in $(seq 120); do
    ceph mds stat 2>/dev/null | grep -q 'up:active' && exit 0
    sleep 0.5
done
echo "cephfs-up: the MDS did not become active; its log is $directory/log/mds.a.log" >&2
exit 1
