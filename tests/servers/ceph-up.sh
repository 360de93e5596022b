#!/bin/bash
# Starts a real Ceph on this machine: one monitor, one manager, N BlueStore OSDs on sparse files, RGW with one S3 user.
#   ceph-up.sh DIR [N=3] [PORT=40400]      takes ports PORT (mon v2), PORT+1 (mon v1), PORT+2 (S3)
# Needs Debian's ceph-mon ceph-mgr ceph-osd radosgw ceph-common curl openssl uuid-runtime.
# Leaves DIR/ceph.conf (for rados:// and rbd), DIR/s3.env (to be sourced for s3://) and DIR/*.pid; stop with ceph-down.sh DIR.
set -euo pipefail
directory=$(realpath -m "${1:?usage: ceph-up.sh DIR [OSDS] [PORT]}")
osds=${2:-3}
port=${3:-40400}
s3_port=$((port + 2))
here=$(dirname "$(realpath "$0")")

for tool in ceph-mon ceph-mgr ceph-osd radosgw radosgw-admin ceph ceph-authtool monmaptool curl openssl uuidgen; do
    command -v $tool >/dev/null || { echo "ceph-up: $tool is missing; install Debian's ceph-mon ceph-mgr ceph-osd radosgw ceph-common curl openssl uuid-runtime" >&2; exit 2; }
done
for number in "$port" $((port + 1)) $s3_port; do
    if (exec 3<>/dev/tcp/127.0.0.1/"$number") 2>/dev/null; then
        echo "ceph-up: port $number is taken; is another cluster running? give another PORT" >&2
        exit 2
    fi
done
if compgen -G "$directory/*.pid" >/dev/null; then
    "$here/ceph-down.sh" "$directory"
fi
rm -rf "$directory"
mkdir -p "$directory"/{mon,mgr,osd,log,rgw}
trap '[ $? -eq 0 ] || { echo "ceph-up: failed; logs are in $directory/log" >&2; "$here/ceph-down.sh" "$directory"; }' EXIT

fsid=$(uuidgen)
export CEPH_CONF=$directory/ceph.conf
cat > "$CEPH_CONF" <<C
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$port/0,v1:127.0.0.1:$((port + 1))/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = $directory/keyring
run_dir = $directory
log_file = $directory/log/\$name.log
admin_socket = $directory/\$name.asok
pid_file = $directory/\$name.pid
osd_pool_default_size = 2
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 16
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
mon_osd_full_ratio = 0.98
mon_osd_backfillfull_ratio = 0.97
mon_osd_nearfull_ratio = 0.96
mon_data_avail_crit = 1
mon_data_avail_warn = 2
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_block_size = 10737418240
bluestore_block_db_create = false
bluestore_block_wal_create = false
[client]
log_file =
admin_socket =
pid_file =
[mon.a]
mon_data = $directory/mon/a
[mgr.x]
mgr_data = $directory/mgr
[mds.a]
mds_data = $directory/mds
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:$s3_port tcp_nodelay=1
rgw_data = $directory/rgw
log_file = $directory/log/rgw.log
pid_file = $directory/rgw.pid
C
for i in $(seq 0 $((osds - 1))); do
    printf '[osd.%d]\nosd_data = %s/osd/%d\n' "$i" "$directory" "$i" >> "$CEPH_CONF"
done

ceph() { command ceph --connect-timeout 30 "$@"; }
ceph-authtool --create-keyring "$directory/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
ceph-authtool "$directory/keyring" --gen-key -n client.admin \
    --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' --cap mds 'allow *' >/dev/null
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$port,v1:127.0.0.1:$((port + 1))]" "$directory/monmap" >/dev/null
ceph-mon --mkfs -i a --monmap "$directory/monmap" --keyring "$directory/keyring"
ceph-mon -i a
ceph auth get-or-create mgr.x mon 'allow profile mgr' osd 'allow *' mds 'allow *' >> "$directory/keyring"
ceph-mgr -i x
for i in $(seq 0 $((osds - 1))); do
    mkdir -p "$directory/osd/$i"
    uuid=$(uuidgen)
    ceph osd new "$uuid" >/dev/null
    ceph auth get-or-create "osd.$i" mon 'allow profile osd' mgr 'allow profile osd' osd 'allow *' >> "$directory/keyring"
    ceph-osd -i "$i" --mkfs --osd-uuid "$uuid" >/dev/null 2>&1
    ceph-osd -i "$i" >/dev/null 2>&1
done
for pool in rbd blockyard; do
    ceph osd pool create $pool 16 >/dev/null 2>&1
    ceph osd pool application enable $pool rbd >/dev/null 2>&1
done
ceph auth get-or-create client.rgw.a mon 'allow rw' osd 'allow rwx' mgr 'allow rw' >> "$directory/keyring"
radosgw -n client.rgw.a
for _ in $(seq 120); do
    curl -s -o /dev/null "http://127.0.0.1:$s3_port/" && break
    sleep 0.5
done
access_key=$(uuidgen | tr -d -)
secret_key=$(uuidgen | tr -d -)
radosgw-admin user create --uid=test --display-name=test --access-key="$access_key" --secret="$secret_key" >/dev/null 2>&1
date=$(LC_ALL=C date -u '+%a, %d %b %Y %H:%M:%S +0000')
signature=$(printf 'PUT\n\n\n%s\n/blockyard' "$date" | openssl dgst -sha1 -hmac "$secret_key" -binary | base64)
curl -sf -X PUT -H "Date: $date" -H "Authorization: AWS $access_key:$signature" "http://127.0.0.1:$s3_port/blockyard"
umask 077
cat > "$directory/s3.env" <<C
AWS_ACCESS_KEY_ID=$access_key
AWS_SECRET_ACCESS_KEY=$secret_key
AWS_REGION=us-east-1
AWS_ENDPOINT_URL=http://127.0.0.1:$s3_port
C
echo "ceph-up: rados://blockyard/PREFIX?conf=$CEPH_CONF and s3://blockyard/PREFIX with the variables of $directory/s3.env"
