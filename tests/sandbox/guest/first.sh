#!/usr/bin/busybox sh
# The initramfs: loads modules, copies itself to a disk, and goes there. pivot_root(2), which boxes
# need, refuses a root that is an initramfs.
B=/usr/bin/busybox
$B mount -t devtmpfs none /dev
$B mount -t proc none /proc
for module in /modules/*.ko; do $B insmod "$module" || echo "@@ no module $module"; done
/usr/sbin/mke2fs -q -t ext4 -O ^has_journal /dev/vda || echo "@@ no file system"
$B mount -t ext4 /dev/vda /new
for dir in usr etc t bin sbin lib lib64; do $B cp -a /$dir /new/; done
for dir in proc sys dev tmp run root var var/tmp home opt; do $B mkdir -p /new/$dir; done
$B chmod 1777 /new/tmp /new/var/tmp
$B umount /proc
$B umount /dev
exec $B switch_root /new /t/init
