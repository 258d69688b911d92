#!/bin/busybox sh
# First process of the guest: load the modules in order, mount the root image, hand over to the boot script.
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
wait_turns=0
while [ ! -b /dev/vda ] && [ $wait_turns -lt 100 ]; do /bin/busybox sleep 0.1; wait_turns=$((wait_turns + 1)); done
/bin/busybox mount -t ext4 /dev/vda /root
for folder in proc sys dev; do /bin/busybox mount --move /$folder /root/$folder; done
exec /bin/busybox switch_root /root /bin/sh /boot-guest
