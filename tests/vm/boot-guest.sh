#!/bin/sh
# Runs as the guest's process 1: bind the card to vfio-pci, run the job that the host left, say how it went, power off.
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /dev/shm /dev/pts && mount -t tmpfs tmpfs /dev/shm && mount -t devpts devpts /dev/pts
mount -t 9p -o trans=virtio,version=9p2000.L,ro project /project
mount -t 9p -o trans=virtio,version=9p2000.L results /results
ip link set lo up 2>/dev/null
export HOME=/tmp PYTHONPATH=/opt/python:/project PYTHONDONTWRITEBYTECODE=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin
cat /proc/uptime >/results/uptime
cd /project
sh /results/job >/results/output 2>&1
echo $? >/results/status
dmesg >/results/dmesg
sync
echo o >/proc/sysrq-trigger
sleep 60
