# SPDX-License-Identifier: Apache-2.0
"""sshd: keys only, never root, modern algorithms; as configured, and as really answered from outside."""

from __future__ import annotations

import pytest

SSHD = "sshd -T -C user=root,host=h,addr=192.0.2.1"
# What OpenSSH's maintainers and the IETF (RFC 8709, 8731, 8732, 9142, 4344) count as sound today: AEAD or CTR ciphers,
# encrypt-then-MAC with SHA-2, curve25519, NIST curves only as signatures, post-quantum hybrids.
CIPHERS = {
    "chacha20-poly1305@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-gcm@openssh.com",
    "aes256-ctr",
    "aes192-ctr",
    "aes128-ctr",
}
MACS = {"hmac-sha2-512-etm@openssh.com", "hmac-sha2-256-etm@openssh.com", "umac-128-etm@openssh.com"}
POST_QUANTUM = {"mlkem768x25519-sha256", "sntrup761x25519-sha512", "sntrup761x25519-sha512@openssh.com"}
FALLBACK = {"curve25519-sha256", "curve25519-sha256@libssh.org"}
TOLERATED = {f"kex {name}: does not provide protection against post-quantum attacks" for name in FALLBACK}
"""What ssh-audit says about the fallback for clients without post-quantum key exchange; nothing else is let pass."""


def _sshd(guest):
    return dict(line.split(" ", 1) for line in guest.root(SSHD).splitlines() if " " in line)


def _listed(guest, key):
    return set(_sshd(guest)[key].split(","))


def test_sshd_is_configured_without_passwords(guest):
    """sshd is configured to accept no password, by any of its ways."""
    wrong = {
        key: value
        for key, value in _sshd(guest).items()
        if key in {"passwordauthentication", "kbdinteractiveauthentication", "permitemptypasswords"} and value != "no"
    }
    assert not wrong, f"sshd would take passwords: {wrong}"


def test_sshd_is_configured_without_root(guest):
    """sshd is configured to let root in by no way."""
    found = _sshd(guest)["permitrootlogin"]
    assert found == "no", f"sshd lets root in: PermitRootLogin {found}"


def test_sshd_offers_modern_ciphers_only(guest):
    """sshd offers no cipher but AEAD and counter mode ones."""
    strange = sorted(_listed(guest, "ciphers") - CIPHERS)
    assert not strange, f"sshd offers old ciphers: {strange}"


def test_sshd_offers_modern_macs_only(guest):
    """sshd offers no message authentication but encrypt-then-MAC with SHA-2 or UMAC-128."""
    strange = sorted(_listed(guest, "macs") - MACS)
    assert not strange, f"sshd offers old message authentication: {strange}"


def test_sshd_offers_modern_key_exchange_only(guest):
    """sshd offers a post-quantum key exchange, Curve25519 for older clients, and no other."""
    offered = _listed(guest, "kexalgorithms")
    strange = sorted(offered - POST_QUANTUM - FALLBACK)
    assert not strange, f"sshd offers old key exchanges: {strange}"
    assert offered & POST_QUANTUM, f"sshd offers no post-quantum key exchange, only {sorted(offered)}"


def test_host_keys_are_modern(guest):
    """The guest's host keys are Ed25519 (or ECDSA for old clients), no DSA and no RSA below 3072 bits."""
    lines = guest.root("for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done").splitlines()
    kinds = [(int(line.split()[0]), line.split()[-1].strip("()")) for line in lines]
    wrong = [kind for kind in kinds if kind[1] == "DSA" or (kind[1] == "RSA" and kind[0] < 3072)]
    assert "ED25519" in [name for _, name in kinds], f"there is no Ed25519 host key, only {kinds}"
    assert not wrong, f"old host keys: {wrong}"


def test_host_keys_are_read_by_root_only(guest):
    """Nobody but root can read the private host keys."""
    lines = guest.root("stat -c '%a %U %n' /etc/ssh/ssh_host_*_key").splitlines()
    wrong = [line for line in lines if not line.startswith("600 root ")]
    assert not wrong, f"private host keys are open to others: {wrong}"


# -- from outside -----------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(facts):
    """What was tried over the network."""
    if facts.outside is None:
        pytest.fail("nothing was tried from outside")
    return facts.outside


@pytest.mark.later
def test_ssh_audit_finds_no_fault(outside):
    """ssh-audit, run against the guest's port, names no algorithm as failed or weak but the fallback key exchange."""
    assert outside.audit.banner, "ssh-audit got no answer from the guest's port 22"
    faults = [fault for fault in outside.audit.faults if fault not in TOLERATED]
    assert not faults, f"ssh-audit finds faults: {faults}"


@pytest.mark.later
def test_a_password_login_is_refused(outside, description):
    """Whoever tries the login user's real console password over ssh is refused, and is not even asked for one."""
    tried = outside.password_login
    assert tried.exit != 0, f"{description.login_user} came in over ssh with a password"
    assert "password" not in tried.offered, f"sshd offers {tried.offered} instead of publickey alone"
    assert "keyboard-interactive" not in tried.offered, f"sshd offers {tried.offered} instead of publickey alone"


@pytest.mark.later
def test_a_root_login_is_refused(outside):
    """root is refused over ssh, with the very key that opens the login user's account and with a password."""
    tried = outside.root_login
    assert tried.exit != 0, "root came in over ssh with the injected key"
    assert "root-was-here" not in tried.printed, "root came in over ssh with the injected key"
    assert outside.root_password_login.exit != 0, "root came in over ssh with a password"
