export DIB_BOOTLOADER_DEFAULT_CMDLINE=${DIB_BOOTLOADER_DEFAULT_CMDLINE:-console=tty0 console=ttyS0,115200n8 net.ifnames=0}
# networks are for networkd and cloud-init
export DIB_APT_MINIMAL_CREATE_INTERFACES=0
