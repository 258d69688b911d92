#!/bin/sh
# The guest's first process after the root file system is there: sets the system up, then runs the jobs that the host
# leaves in the exchange folder, each in the background, until it finds one named "power-off".
mount -t proc proc /proc 2>/dev/null
mount -t sysfs sysfs /sys 2>/dev/null
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /dev/shm /dev/pts /project /exchange
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144 project /mnt
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 exchange /exchange
mount -t tmpfs -o mode=755 tmpfs /project
for part in npuctl.py pyproject.toml README.md sdk driver_shim emulator firmware_tools tests udev docs examples; do
    [ -e "/mnt/$part" ] && cp -r "/mnt/$part" /project/
done
ip link set lo up
export NPU_TEST_TIME_SCALE=5 PYTHONSAFEPATH=1 HOME=/root PYTHONPATH=/project:/opt/python PATH=/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
/usr/lib/systemd/systemd-udevd --daemon
cd /project || exit 1
cut -d ' ' -f 1 /proc/uptime >/exchange/ready.part
mv /exchange/ready.part /exchange/ready

run_job() {
    sh "/exchange/running-$1" >"/exchange/output-$1" 2>&1 </dev/null
    echo $? >"/exchange/status-$1.part"
    mv "/exchange/status-$1.part" "/exchange/status-$1"
}

while [ ! -e /exchange/power-off ]; do
    for job in /exchange/job-*; do
        [ -e "$job" ] || continue
        number="${job##*-}"
        mv "$job" "/exchange/running-$number"
        run_job "$number" &
    done
    sleep 0.05
done
sync
echo o >/proc/sysrq-trigger
sleep 60
