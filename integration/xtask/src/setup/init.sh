#!/bin/busybox sh
# The guest's first program: file systems, modules in order, then the host's agent on ttyS1.
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /etc
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo 'guest' > /etc/hostname
: > /etc/fstab
ln -sf /proc/mounts /etc/mtab
while read -r module; do
    insmod "/modules/$module.ko" || echo "init: no $module"
done < /modules/order
if grep -q ukai.shell /proc/cmdline; then
    echo 'The disk is /dev/vda. poweroff -f ends this guest.'
    setsid cttyhack sh
    poweroff -f
fi
stty -F /dev/ttyS1 raw -echo 115200
echo 'init: agent'
/bin/ukai-guest agent /dev/ttyS1
echo "init: the agent ended with $?"
poweroff -f
