# What only Debian 13 needs; descriptions/common/config.sh follows in the same shell.

# the real dracut again (post_bootstrap.sh)
rm /usr/bin/dracut
dpkg-divert --local --quiet --rename --remove /usr/bin/dracut
# a place for the initrd, by the name that Debian's kernel updates use: the builder fills the one that it finds
for kernel in /boot/vmlinuz-*; do
    : >"/boot/initrd.img-${kernel#/boot/vmlinuz-}"
done

# there is no LVM whose snapshots could be scrubbed
systemctl disable e2scrub_all.timer e2scrub_reap.service
