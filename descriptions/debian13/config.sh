# What only Debian 13 needs; descriptions/common/config.sh follows in the same shell.

# Debian's security team supports these for the whole life of the release; nothing else may be enabled by a package.
systemctl disable e2scrub_all.timer e2scrub_reap.service
