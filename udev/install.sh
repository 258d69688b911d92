#!/bin/sh
# Installs the rules, the group and the runtime folder; running it again changes nothing. With DESTDIR the files go
# below that folder and nothing is started: the package's own scripts do that on the machine it is installed on.
set -eu

here=$(dirname "$0")
destination=${DESTDIR:-}

put() { # put SOURCE TARGET
    install -D -m 0644 "$here/$1" "$destination$2"
    echo "$destination$2"
}

# run PROGRAM ARGUMENT…: one that is missing, or fails for want of a daemon, does not keep the others from running
run() {
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "skipped, no $1 here: $*"
    elif ! "$@"; then
        echo "did not succeed: $*" >&2
    fi
}

put 70-npu.rules /usr/lib/udev/rules.d/70-npu.rules
put npu.sysusers.conf /usr/lib/sysusers.d/npu.conf
put npu.tmpfiles.conf /usr/lib/tmpfiles.d/npu.conf
[ -z "$destination" ] || exit 0

# the group first: udev drops rules that name a group it does not know
run systemd-sysusers npu.conf
run systemd-tmpfiles --create npu.conf
run udevadm control --reload
# only what the rules are about; --action=change leaves the rest of the machine alone
run udevadm trigger --action=change --subsystem-match=vfio --subsystem-match=vfio-dev
run udevadm trigger --action=change --subsystem-match=misc --sysname-match=vfio --sysname-match=iommu
run udevadm trigger --action=change --subsystem-match=usb --attr-match=idVendor=b7c4
echo "now add users: usermod -aG npu NAME"
