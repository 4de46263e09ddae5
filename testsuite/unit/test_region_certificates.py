# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from factory.region.certificates import THROW_AWAY, certificates_in, covers, fingerprint, issue
from factory.region.embedded import embedded_region
from factory.region.region_rules import check_regions

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_a_certificate_has_what_strict_clients_want() -> None:
    made = issue("a.test.invalid", now=NOW, days=30, names=["a.test.invalid"], addresses=["192.0.2.1", "2001:db8::1"])
    found = made.certificate
    assert found.version is x509.Version.v3
    constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert found.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert found.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    for item in ("a.test.invalid", "A.test.invalid", "192.0.2.1", "2001:db8::1", "2001:db8:0::1"):
        assert covers(found, item)
    for item in ("b.test.invalid", "192.0.2.2", "2001:db8::2", ""):
        assert not covers(found, item)


@pytest.mark.parametrize("key_type", ["ecdsa", "rsa"])
def test_a_server_certificate_chains_to_its_ca(key_type: str) -> None:
    authority = issue("CA", now=NOW, days=30, is_authority=True)
    server = issue("s.invalid", now=NOW, days=20, names=["s.invalid"], authority=authority, key_type=key_type)
    server.certificate.verify_directly_issued_by(authority.certificate)
    assert authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_fingerprint_is_sha1_of_the_first_certificate_in_upper_case_with_colons() -> None:
    first, second = (issue(name, now=NOW, days=30) for name in ("first", "second"))
    der = ssl.PEM_cert_to_DER_cert(first.pem.decode())
    expected = hashlib.sha1(der).hexdigest().upper()
    found = fingerprint("text before\n" + first.pem.decode() + second.pem.decode())
    assert found.replace(":", "") == expected
    assert len(found.split(":")) == 20
    with pytest.raises(ValueError, match="no certificate"):
        fingerprint("nothing here")


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    certificate, key = issue("a", now=NOW, days=1).write(tmp_path, "a")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "PRIVATE" not in certificate.read_text()


def test_the_embedded_region_is_made_once_and_says_what_it_is(tmp_path: Path) -> None:
    made = embedded_region(tmp_path / "region", now=NOW)
    assert embedded_region(tmp_path / "region", now=NOW + timedelta(days=100)) == made
    assert made.embedded
    assert check_regions([made]) == ()
    assert [server.ipv4 for server in made.servers] == ["192.0.2.10", "198.51.100.10"]
    assert [server.ipv4 for server in made.update_servers] == ["192.0.2.20", "198.51.100.20"]
    for server in (*made.servers, *made.update_servers):
        (shown,) = certificates_in((server.certificate or server.pem).read_text())
        assert covers(shown, server.name)
        assert covers(shown, server.ipv4)
        assert THROW_AWAY in shown.subject.rfc4514_string()
    for key in (tmp_path / "region").rglob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_the_embedded_region_is_renewed_before_images_outlive_it_and_old_keys_stay(tmp_path: Path) -> None:
    old = embedded_region(tmp_path / "region", now=NOW)
    new = embedded_region(tmp_path / "region", now=NOW + timedelta(days=4 * 365))
    assert new != old
    assert old.servers[0].pem.exists(), "images that pin it still have to be verified"
    (certificate,) = certificates_in(new.servers[0].pem.read_text())
    assert certificate.not_valid_after_utc > NOW + timedelta(days=6 * 365)


def test_what_a_crash_left_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "region"
    (folder / ".new-crashed").mkdir(parents=True)
    (folder / "20260101-000000").mkdir()
    made = embedded_region(folder, now=NOW)
    assert made.servers[0].pem.is_file()
    assert not (folder / ".new-crashed").exists()
