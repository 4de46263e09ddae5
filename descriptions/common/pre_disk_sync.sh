# The builder's last word before the tree goes onto the disk: whatever the build left behind goes.
# Runs in the root tree; the initrd and GRUB's files are made.

# for the menu that a kernel update in an instance writes
grep -q '^GRUB_DISTRIBUTOR=' /etc/default/grub || echo 'GRUB_DISTRIBUTOR=Debian' >>/etc/default/grub

# made anew at the first boot
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_* /etc/hostname
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -rf /var/lib/cloud /var/lib/chrony/* /var/lib/wtmpdb/* /var/lib/lastlog/*

# the resolver's own list of servers: no stub listens
rm -f /etc/resolv.conf /etc/.resolv.conf.systemd-resolved.bak
ln -s ../run/systemd/resolve/resolv.conf /etc/resolv.conf

# logs, caches, backups, temporary files
find /var/log -type f -delete
rm -rf /var/log/journal/* /var/log/apt/*
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/cache/man/* /var/cache/kiwi
rm -f /var/lib/dpkg/*-old /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid- /etc/.pwd.lock
rm -rf /tmp/* /tmp/.[!.]* /var/tmp/* /root/.cache /root/.ssh /root/.bash_history /root/.gnupg /root/.wget-hsts
rm -rf /etc/apt/keyrings/kiwi-* /etc/apt/apt.conf.d/*proxy* /usr/share/keyrings/kiwi-*

# the builder's own files
rm -rf /.profile /.kconfig /config.bootoptions /config.partids /kiwi_apt.config* /boot/mbrid /etc/dracut.conf.d/*kiwi* \
    /usr/sbin/policy-rc.d
rm -f /vmlinuz.old /initrd.img.old
mkdir -p /var/cache/apt/archives/partial /var/lib/apt/lists/partial
