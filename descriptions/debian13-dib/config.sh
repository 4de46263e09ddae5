# What only Debian 13 needs; descriptions/common/config.sh follows in the same shell.

# the real dracut again (post_bootstrap.sh)
rm /usr/bin/dracut
dpkg-divert --local --quiet --rename --remove /usr/bin/dracut

# there is no LVM whose snapshots could be scrubbed
systemctl disable e2scrub_all.timer e2scrub_reap.service
