#!/bin/bash
# Stops what ceph-up.sh started in DIR: the processes of its pid files, gently and then for good. Keeps the files.
set -euo pipefail
directory=$(realpath -m "${1:?usage: ceph-down.sh DIR}")
pids=()
for file in "$directory"/*.pid; do
    [ -s "$file" ] || continue
    pid=$(tr -cd 0-9 < "$file")
    # A pid file may be older than the process that has its number now: the command line must name our directory's daemon.
    if [ -n "$pid" ] && tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qE '^(\S*/)?(ceph-|radosgw)'; then
        pids+=("$pid")
    fi
    rm -f "$file"
done
[ ${#pids[@]} -gt 0 ] || exit 0
kill "${pids[@]}" 2>/dev/null || true
for _ in $(seq 50); do
    alive=()
    for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && alive+=("$pid"); done
    [ ${#alive[@]} -gt 0 ] || exit 0
    sleep 0.1
done
kill -9 "${alive[@]}" 2>/dev/null || true
