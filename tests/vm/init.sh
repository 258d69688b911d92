#!/bin/busybox sh
# First process of the guest: load the modules in order, mount the root image, hand over to what runs jobs.
/bin/busybox mkdir -p /proc /sys /dev /system
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
turns=0
while [ ! -b /dev/vda ] && [ $turns -lt 100 ]; do /bin/busybox sleep 0.1; turns=$((turns + 1)); done
/bin/busybox mount -t ext4 /dev/vda /system
/bin/busybox mount -t tmpfs run /system/run && /bin/busybox cp /jobs /system/run/jobs
for folder in proc sys dev; do /bin/busybox mount --move /$folder /system/$folder; done
exec /bin/busybox switch_root /system /bin/sh /run/jobs
