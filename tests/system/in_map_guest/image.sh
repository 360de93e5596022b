# A real image of a real pool, mapped by the real command, under ext4.
cd "$REPOSITORY"
field() { sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" /run/blockyard/map-*/state.json; }
say() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
until_another_serves() { # than gateway PID
  while [ "$(field gateway_pid)" = "$1" ] || ! grep -q '"serving": true' /run/blockyard/map-*/state.json; do usleep 50000; done
}
write_files() { # PREFIX COUNT: files of 512 KiB, half of it compressible, each durable before the next
  for i in $(seq "$2"); do
    (dd if=/dev/urandom bs=128k count=2; dd if=/dev/zero bs=128k count=2) 2>/dev/null > "/tmp/$1$i"
    dd if="/tmp/$1$i" of="/mnt/$1$i" bs=64k conv=fsync 2>/dev/null
    (cd /tmp && sha256sum "$1$i" >> /tmp/sums && rm "$1$i")
  done
}

export BLOCKYARD_KEY_FILE=/pool/key
image=file:///pool/p/disk
device=$(blockyard map "$image" --timeout 10)
say "mapped at $device"
mkfs.ext4 -q "$device"
mount "$device" /mnt
say mounted
write_files calm 2

say killing the gateway while files are written
write_files killed 10 &
for pause in 1000000 2500000; do
  usleep $pause
  gateway=$(field gateway_pid)
  kill -9 "$gateway"
  until_another_serves "$gateway"
  say another gateway serves
done
wait $!

say upgrading while files are written
write_files upgraded 4 &
gateway=$(field gateway_pid)
kill -HUP "$(field supervisor_pid)"
until_another_serves "$gateway"
wait $!

say growing
blockyard image resize "$image" 96M
while [ "$(cat /sys/block/nbd0/size)" != 196608 ]; do usleep 100000; done
resize2fs "$device" 2> /dev/null
write_files grown 2
say "grown to $(cat /sys/block/nbd0/size) sectors"

blockyard unmap "$device" && say unmapped while mounted || say "unmap refused with status $?"
umount /mnt
mount "$device" /mnt
(cd /mnt && sha256sum -c /tmp/sums) | grep -v ': OK$' || say all files are whole
cp /tmp/sums /mnt/sums
umount /mnt
blockyard mapped --json
cat /run/blockyard/map-*/*.log
blockyard unmap "$image" && say unmapped

say mapping a snapshot
blockyard snapshot create "$image@kept"
device=$(blockyard map "$image@kept")
say "the snapshot is at $device, read-only: $(cat /sys/block/nbd0/ro)"
mount -t ext4 -o ro,noload "$device" /mnt
(cd /mnt && sha256sum -c sums) | grep -v ': OK$' || say all files of the snapshot are whole
umount /mnt
dd if=/dev/zero of="$device" bs=4k count=1 conv=fsync 2> /dev/null && say written || say a write to the snapshot failed
blockyard unmap "$device" && say unmapped the snapshot
ps | grep -E '[n]bdkit|[b]lockyard map' || say nothing is left
