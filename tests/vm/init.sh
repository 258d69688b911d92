#!/bin/busybox sh
# First process of the guest: load the modules in order, mount the root image, hand over to the agent.
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
turns=0
while [ ! -b /dev/vda ] && [ $turns -lt 100 ]; do /bin/busybox sleep 0.1; turns=$((turns + 1)); done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -t tmpfs run /root/run && /bin/busybox cp /agent /root/run/agent
for folder in proc sys dev; do /bin/busybox mount --move /$folder /root/$folder; done
exec /bin/busybox switch_root /root /bin/sh /run/agent
