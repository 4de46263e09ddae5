export DIB_RELEASE=trixie
