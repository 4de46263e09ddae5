# Runs in the root tree after the packages, the overlay and the image's own part.

# -- our own packages ----------------------------------------------------------------------------------------------------
# Their files lie there already, from the overlay; now they belong to packages, which updates can replace.
if [ -d /var/cache/image-factory ]; then
    dpkg --install /var/cache/image-factory/*.deb
    rm -r /var/cache/image-factory
fi

# -- services ----------------------------------------------------------------------------------------------------------
# updates are the customer's decision, never a timer's
systemctl disable apt-daily.timer apt-daily-upgrade.timer
systemctl enable systemd-networkd.service systemd-resolved.service chrony.service apparmor.service ssh.service
systemctl enable new-machine-id.service
if [ -f /usr/lib/systemd/system/console-password.service ]; then
    systemctl enable console-password.service
fi
# networkd brings the network up, before cloud-init's network stage
systemctl enable systemd-networkd-wait-online.service

# -- accounts ----------------------------------------------------------------------------------------------------------
# login_user comes from image.toml
useradd --create-home --shell /bin/bash --comment "$login_user" --groups adm,sudo "$login_user"
passwd --quiet --lock "$login_user"
passwd --quiet --lock root
chmod 0440 /etc/sudoers.d/login-user
chmod 0700 /root "/home/$login_user"

# -- nothing that an instance must make for itself, and nothing of the build --------------------------------------------
rm -f /etc/ssh/ssh_host_*
apt-get clean
