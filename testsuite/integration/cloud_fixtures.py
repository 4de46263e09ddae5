# SPDX-License-Identifier: Apache-2.0
"""One real Keystone and Glance for all tests, and one project per test."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from factory import cloud
from factory.cloud.settings import PUBLISHER_ROLE, REGION
from factory.store.glance import GlanceStore, Observer, connect_glance
from factory.system.openstack import connect

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Tenant:
    """A project of its own in the embedded cloud, with a publisher and a clouds.yaml that names it."""

    name: str
    clouds_yaml: Path
    project_id: str

    def store(self, *, holder: str = "test", observer: Observer | None = None) -> GlanceStore:
        """A store for the publisher of this project."""
        extra = {} if observer is None else {"observer": observer}
        return connect_glance(self.name, clouds_yaml=self.clouds_yaml, direct=True, holder=holder, **extra)


@pytest.fixture(scope="session")
def embedded_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cloud.CloudAccess]:
    """The embedded cloud, brought up once; ended after the last test."""
    folder = tmp_path_factory.mktemp("cloud")
    access = cloud.up(folder, say=lambda _line: None)
    yield access
    cloud.down(folder)


@pytest.fixture(scope="session")
def new_tenant(embedded_cloud: cloud.CloudAccess, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Tenant]:
    """Makes a fresh project with a publisher (member and the role that may publicize); about 0.3 s each."""
    identity = connect(embedded_cloud.admin, clouds_yaml=embedded_cloud.clouds_yaml, direct=True).identity
    roles = {role.name: role for role in identity.roles()}
    folder = tmp_path_factory.mktemp("tenants")

    def make() -> Tenant:
        name, password = f"tenant-{os.getpid()}-{next(_NUMBERS)}", secrets.token_urlsafe(16)
        project = identity.create_project(name=name, domain_id="default")
        user = identity.create_user(name=name, password=password, domain_id="default", default_project_id=project.id)
        for role in ("member", PUBLISHER_ROLE):
            identity.assign_project_role_to_user(project, user, roles[role])
        path = folder / f"{name}.yaml"
        path.write_text(
            f"clouds:\n  {name}:\n    region_name: {REGION}\n    auth:\n      auth_url: {embedded_cloud.auth_url}\n"
            f"      username: {name}\n      password: {password}\n      project_name: {name}\n"
            "      user_domain_name: Default\n      project_domain_name: Default\n"
        )
        return Tenant(name=name, clouds_yaml=path, project_id=project.id)

    return make


@pytest.fixture
def tenant(new_tenant: Callable[[], Tenant]) -> Tenant:
    """A fresh project for one test."""
    return new_tenant()


__all__ = ["Tenant", "embedded_cloud", "new_tenant", "tenant"]
