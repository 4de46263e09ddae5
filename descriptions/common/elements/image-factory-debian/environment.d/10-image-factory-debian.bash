export DISTRO_NAME=debian
export DIB_RELEASE=${DIB_RELEASE:?is set by the element of the image}
export DIB_INIT_SYSTEM=systemd
export DIB_PYTHON_VERSION=3
# debs come from a mirror nearby, and a cache would hide from it what an image is made of
export DIB_APT_LOCAL_CACHE=0
export DIB_APT_SOURCES_CONF
export DIB_APT_KEYRING=${DIB_APT_KEYRING:-}
