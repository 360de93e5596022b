# What the real driver of a Debian kernel does with our supervisor, under XFS: the filesystem that shuts down at the first
# lost write. The gateway is nbdkit's file plugin on /pool/disk, so that
# nothing but the kernel, the supervisor and a plain file is between a write and the host that looks at it afterwards.
cd "$REPOSITORY"
verb() { "$PYTHON" tests/system/in_map_guest/verb.py "$@"; }
map() { "$PYTHON" tests/system/in_map_guest/map_command.py test/disk 4096 3 nbdkit -f -U '{socket}' file /pool/disk; }
field() { sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" /run/blockyard/map-*/state.json; }
say() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
until_another_serves() { # than gateway PID
  while [ "$(field gateway_pid)" = "$1" ] || ! grep -q '"serving": true' /run/blockyard/map-*/state.json; do usleep 50000; done
}
write_files() { # PREFIX COUNT: files of 1 MiB, each durable before the next
  for i in $(seq "$2"); do
    dd if=/dev/urandom of="/mnt/$1$i" bs=1M count=1 conv=fsync 2>/dev/null
    (cd /mnt && sha256sum "$1$i") >> /tmp/sums
  done
}

truncate -s 320M /pool/disk
device=$(map)
say "mapped at $device, backend $(cat /sys/block/nbd0/backend)"
mkfs.xfs -q "$device"
mount "$device" /mnt

say killing the gateway while files are written
write_files killed 20 &
for pause in 300000 1100000 700000 1900000; do
  usleep $pause
  gateway=$(field gateway_pid)
  kill -9 "$gateway"
  until_another_serves "$gateway"
done
wait $!

say stopping the gateway until the kernel gives it up
gateway=$(field gateway_pid)
kill -STOP "$gateway"
write_files stopped 2
[ ! -e "/proc/$gateway" ] && say the stopped gateway was killed

say asking for an upgrade while files are written
write_files upgraded 6 &
gateway=$(field gateway_pid)
kill -HUP "$(field supervisor_pid)"
until_another_serves "$gateway"
wait $!

say growing
truncate -s 384M /pool/disk
while [ "$(cat /sys/block/nbd0/size)" = 655360 ]; do usleep 50000; done
xfs_growfs /mnt > /dev/null
say "grown to $(cat /sys/block/nbd0/size) sectors"
write_files grown 4

say refusing
verb unmap nbd0 && say unmapped while mounted || say "unmap refused with status $?"
kill "$(field supervisor_pid)"
while ! grep -q 'serving on' /run/blockyard/map-*/supervisor.log; do usleep 50000; done
map && say mapped twice || say second map refused

say killing the supervisor
supervisor=$(field supervisor_pid)
kill -9 "$supervisor"
write_files orphaned 2
verb mapped --json
say "mapped again at $(map)"
write_files adopted 2

umount /mnt
mount "$device" /mnt
(cd /mnt && sha256sum -c /tmp/sums) | grep -v ': OK$' || say all files are whole
cp /tmp/sums /mnt/sums
umount /mnt
cat /run/blockyard/map-*/supervisor.log
verb unmap "$device" && say unmapped
[ ! -e /sys/block/nbd0/pid ] && say the device is free
verb mapped
ps | grep -E '[n]bdkit|[m]ap_command' || say nothing is left

say disconnected by somebody else
device=$(map)
nbd-client -d "$device" > /dev/null
while [ -e "/run/blockyard" ] && ls /run/blockyard/map-* > /dev/null 2>&1; do usleep 50000; done
ps | grep -E '[n]bdkit|[m]ap_command' || say nothing is left after a foreign disconnect
