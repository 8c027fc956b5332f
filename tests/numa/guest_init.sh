#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of the emulated machine: puts the host's root file system under a layer in memory, runs
# /script inside and switches off.
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /host /layer /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
  insmod "$module" || echo "guest: cannot load $module"
done
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$options,ro,cache=loose" host /host || echo "guest: cannot mount the host's root"
mount -t tmpfs tmpfs /layer
mkdir -p /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t devtmpfs devtmpfs /root/dev
mkdir -p /root/dev/shm /root/numa-machine-results
mount -t tmpfs tmpfs /root/dev/shm
mount -t 9p -o "$options" results /root/numa-machine-results || echo "guest: cannot mount results"
cp /script /root/numa-machine-script
chroot /root /bin/sh /numa-machine-script
sync
reboot -f
