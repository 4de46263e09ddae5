# SPDX-License-Identifier: Apache-2.0
"""Clouds that refuse, lie or are not there: one clear error, exit 3, and what users see stays as it is."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from factory.errors import StoreError
from factory.model import Bundle
from factory.store.glance import GlanceStore, connect_glance
from factory.store.line import latest_name
from testsuite.fakes.narrow_glance import Rule, narrowed
from testsuite.fakes.readers import expect_order
from testsuite.fakes.tls import Answers, tls_server
from testsuite.integration.cloud_fixtures import Tenant
from testsuite.integration.test_cloud_probe import converted, no_path, refuses
from testsuite.integration.test_glance import Readers, night, nights, readers

__all__ = ["nights", "readers"]
pytestmark = pytest.mark.needs_glance


@dataclass(frozen=True)
class Case:
    """What is wrong, what the error says, and a word of its hint."""

    rule: Callable[[], Rule] | None
    says: str
    hint: str
    replaced: tuple[str, str] = ("", "")


CASES = {
    "wrong credentials": Case(None, "no access", "credentials", ("password: ", "password: no")),
    "endpoint away": Case(
        None,
        "does not answer",
        "cloud is up",
        ("    auth:\n", "    image_endpoint_override: http://127.0.0.1:9/v2\n    auth:\n"),
    ),
    "too many images": Case(lambda: Rule(ask=no_path("POST", "/images", 413)), "413", "quota"),
    "image too large": Case(lambda: Rule(ask=no_path("PUT", "/file", 413)), "413", "limit"),
    "conversion on import": Case(lambda: Rule(tell=converted), "other bytes", "convert"),
    "property over quota": Case(lambda: Rule(ask=refuses("PATCH", "imgfactory_tested", status=413)), "413", "quota"),
    "public forbidden": Case(lambda: Rule(ask=refuses("PATCH", "visibility", "public")), "403", "publicize"),
    "clock two hours behind": Case(lambda: Rule(late_s=7200), "clock", "set the clocks"),
    "clock two hours ahead": Case(lambda: Rule(late_s=-7200), "clock", "set the clocks"),
}


@contextlib.contextmanager
def spoiled(tenant: Tenant, case: Case, folder: Path) -> Iterator[GlanceStore]:
    text = tenant.clouds_yaml.read_text()
    path = folder / "clouds.yaml"
    with contextlib.ExitStack() as stack:
        if case.rule is not None:
            address = stack.enter_context(narrowed(tenant.store().address(), case.rule()))
            text = text.replace("    auth:\n", f"    image_endpoint_override: {address}\n    auth:\n", 1)
        elif case.replaced[0]:
            text = text.replace(*case.replaced, 1)
        path.write_text(text)
        yield connect_glance(tenant.name, clouds_yaml=path, direct=True, holder="test")


@pytest.mark.parametrize("name", CASES)
def test_latest_stays_and_the_next_night_goes_through(
    tenant: Tenant, nights: Callable[[str], list[Bundle]], readers: Readers, name: str, tmp_path: Path
) -> None:
    line = f"Bad_{tenant.name}"
    first, second, _ = nights(line)
    latest = night(first, tenant.store())
    before = tenant.store().get(latest)
    with spoiled(tenant, CASES[name], tmp_path) as store, pytest.raises(StoreError) as told:
        night(second, store)
    assert told.value.exit_code == 3
    assert CASES[name].says in "\n".join(told.value.lines())
    assert CASES[name].hint in told.value.hint
    assert tenant.store().get(latest) == before
    assert readers.sdk(latest_name(line)) == latest
    assert readers.plain(latest_name(line)) == [latest]
    assert all(image.hidden and image.visibility == "private" for image in tenant.store().list_line(line)[:-1])
    newer = night(second, tenant.store())
    assert readers.sdk(latest_name(line)) == newer
    expect_order(tenant.store().list_line(line), line, prev=True)


def test_a_certificate_that_nobody_signed_is_refused_at_once(
    tenant: Tenant, nights: Callable[[str], list[Bundle]], readers: Readers, tmp_path: Path
) -> None:
    line = f"Tls_{tenant.name}"
    first, second, _ = nights(line)
    latest = night(first, tenant.store())
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with tls_server(certificate, key, Answers(paths={})) as port:
        override = f"    image_endpoint_override: https://127.0.0.1:{port}/v2\n    auth:\n"
        case = Case(None, "", "", ("    auth:\n", override))
        with spoiled(tenant, case, tmp_path) as store, pytest.raises(StoreError, match="TLS") as told:
            night(second, store)
    assert told.value.exit_code == 3
    assert "cacert" in told.value.hint
    assert readers.sdk(latest_name(line)) == latest
