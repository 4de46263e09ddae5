# SPDX-License-Identifier: Apache-2.0
"""Ports, passwords and configuration files of the embedded cloud: values in, texts out."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
REGION = "RegionOne"
PROJECT = "factory"
READER_PROJECT = "tenant"
PUBLISHER_ROLE = "image_publisher"
PUBLISHER, READER, ADMIN = "factory", "factory-reader", "factory-admin"
"""Names of the clouds in clouds.yaml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """The passwords of one embedded cloud; they never appear in a representation."""

    admin: str = field(repr=False)
    publisher: str = field(repr=False)
    reader: str = field(repr=False)
    service: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is decided once, before the databases are made, and kept with them."""

    identity_port: int
    image_port: int
    passwords: Secrets

    @property
    def identity_url(self) -> str:
        return f"http://{HOST}:{self.identity_port}/v3"

    @property
    def image_url(self) -> str:
        return f"http://{HOST}:{self.image_port}"

    def text(self) -> str:
        """As kept in ``settings.json``."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def parse(cls, text: str) -> Settings:
        """The settings that :meth:`text` wrote; ValueError, KeyError or TypeError when it is something else."""
        body = json.loads(text)
        passwords = Secrets(**body["passwords"])
        return cls(identity_port=int(body["identity_port"]), image_port=int(body["image_port"]), passwords=passwords)


def new_settings(identity_port: int, image_port: int) -> Settings:
    """Settings with fresh random passwords."""
    passwords = Secrets(**{name: secrets.token_urlsafe(24) for name in ("admin", "publisher", "reader", "service")})
    return Settings(identity_port=identity_port, image_port=image_port, passwords=passwords)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the embedded cloud keeps things; ``data`` appears whole, the rest is made again when it is missing."""

    folder: Path

    @property
    def data(self) -> Path:
        """Databases, token keys and settings."""
        return self.folder / "data"

    @property
    def settings(self) -> Path:
        return self.data / "settings.json"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    @property
    def keystone_conf(self) -> Path:
        return self.etc / "keystone" / "keystone.conf"

    @property
    def glance_conf(self) -> Path:
        return self.etc / "glance" / "glance-api.conf"

    @property
    def gunicorn_conf(self) -> Path:
        return self.etc / "gunicorn.py"

    @property
    def clouds_yaml(self) -> Path:
        return self.folder / "clouds.yaml"

    @property
    def registered(self) -> Path:
        """Says for which settings users, roles and endpoints are in place."""
        return self.data / "registered"

    @property
    def lock(self) -> Path:
        return self.folder / "up.lock"

    def mark(self, service: str) -> Path:
        """The file that a service's processes hold open."""
        return self.folder / "run" / f"{service}.mark"

    def log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"


def keystone_conf(layout: Layout, data: Path) -> str:
    """keystone.conf for the databases below ``data``."""
    return f"""\
[DEFAULT]
log_file = {layout.log("keystone")}
[database]
connection = sqlite:///{data}/keystone.sqlite
[token]
provider = fernet
expiration = 14400
[fernet_tokens]
key_repository = {data}/fernet
[fernet_receipts]
# A repository of its own: unset, it is looked for below the host's /etc.
key_repository = {data}/fernet
[credential]
key_repository = {data}/credential
[cache]
# In memory: there is one process, and without a cache each request costs a hundred SQL statements.
enabled = true
backend = oslo_cache.dict
backend_argument = expiration_time:600
[identity]
# The passwords are long and random; slow hashing would add nothing but time.
password_hash_rounds = 4
[oslo_policy]
enforce_scope = true
enforce_new_defaults = true
"""


def glance_conf(layout: Layout, data: Path, settings: Settings, *, paste_ini: Path) -> str:
    """glance-api.conf for the database below ``data``, with the file store below the folder."""
    return f"""\
[DEFAULT]
log_file = {layout.log("glance")}
enabled_backends = local:file
enabled_import_methods = [glance-direct]
worker_self_reference_url = {settings.image_url}
show_multiple_locations = false
workers = 1
[wsgi]
task_pool_threads = 4
[database]
connection = sqlite:///{data}/glance.sqlite
[glance_store]
default_backend = local
[local]
filesystem_store_datadir = {layout.images}/store
[os_glance_staging_store]
filesystem_store_datadir = {layout.images}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {layout.images}/tasks
[oslo_concurrency]
lock_path = {layout.folder}/run
[paste_deploy]
flavor = keystone
config_file = {paste_ini}
[keystone_authtoken]
www_authenticate_uri = {settings.identity_url}
auth_url = {settings.identity_url}
auth_type = password
username = glance
password = {settings.passwords.service}
project_name = service
user_domain_name = Default
project_domain_name = Default
region_name = {REGION}
service_token_roles_required = true
[oslo_policy]
enforce_scope = true
enforce_new_defaults = true
policy_file = {layout.etc}/glance/policy.yaml
policy_dirs = {layout.etc}/glance/policy.d
"""


GLANCE_POLICY = f"""\
# The publisher is no administrator: one role lets it publicize its own project's images, and nothing else.
"publicize_image": "rule:context_is_admin or (role:{PUBLISHER_ROLE} and project_id:%(project_id)s)"
"""

IMAGE_IMPORT = "[image_import_opts]\nimage_import_plugins = []\n"

GUNICORN = """\
# The WSGI modules parse sys.argv, which here is gunicorn's own: they would exit with status 2 for ever.
# SQLite refuses to let a transaction that has read begin to write once another has written ("database is locked", at
# once, whatever its timeout): two uploads in one moment would be one error 500. So each transaction waits for its turn
# at its beginning.
def post_fork(server, worker):
    import sys

    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    del sys.argv[1:]

    @event.listens_for(Engine, "connect")
    def patient(connection, record):
        connection.execute("PRAGMA busy_timeout = 60000")

    @event.listens_for(Engine, "begin")
    def write(connection):
        # oslo.db sends a plain BEGIN unless this says that there is one
        if "in_transaction" not in connection.info:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.info["in_transaction"] = True
"""


def configuration(layout: Layout, data: Path, settings: Settings, *, paste_ini: Path) -> Mapping[Path, str]:
    """Every configuration file with its text."""
    return {
        layout.keystone_conf: keystone_conf(layout, data),
        layout.glance_conf: glance_conf(layout, data, settings, paste_ini=paste_ini),
        layout.etc / "glance" / "policy.yaml": GLANCE_POLICY,
        layout.etc / "glance" / "glance-image-import.conf": IMAGE_IMPORT,
        layout.gunicorn_conf: GUNICORN,
    }


def identities(settings: Settings) -> Mapping[str, Mapping[str, str]]:
    """Cloud name in clouds.yaml → user, password and project."""
    passwords = settings.passwords
    return {
        PUBLISHER: {"username": "publisher", "password": passwords.publisher, "project_name": PROJECT},
        READER: {"username": "reader", "password": passwords.reader, "project_name": READER_PROJECT},
        ADMIN: {"username": "admin", "password": passwords.admin, "project_name": "admin"},
    }


def clouds_yaml(settings: Settings) -> str:
    """clouds.yaml with the three identities (JSON strings are YAML strings)."""
    lines = ["# Written by 'factory cloud up': the embedded cloud on loopback. Contains passwords.", "clouds:"]
    for cloud, identity in identities(settings).items():
        auth = {"auth_url": settings.identity_url, **identity}
        auth |= {"user_domain_name": "Default", "project_domain_name": "Default"}
        lines += [f"  {cloud}:", "    auth_type: password", f"    region_name: {REGION}", "    auth:"]
        lines += [f"      {key}: {json.dumps(value)}" for key, value in auth.items()]
        lines += ['    identity_api_version: "3"', '    image_api_version: "2"']
    return "\n".join(lines) + "\n"


def environment(layout: Layout, settings: Settings, cloud: str) -> str:
    """``export`` lines for a shell: OS_CLOUD for openstackclient, OS_* for python-glanceclient; no proxy here."""
    identity = identities(settings)[cloud]
    exports = {
        "OS_CLIENT_CONFIG_FILE": str(layout.clouds_yaml),
        "OS_CLOUD": cloud,
        "OS_AUTH_TYPE": "password",
        "OS_AUTH_URL": settings.identity_url,
        "OS_USERNAME": identity["username"],
        "OS_PASSWORD": identity["password"],
        "OS_PROJECT_NAME": identity["project_name"],
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_NAME": "Default",
        "OS_REGION_NAME": REGION,
        "OS_IDENTITY_API_VERSION": "3",
    }
    lines = [f"export {key}={shlex.quote(value)}" for key, value in exports.items()]
    return "\n".join([*lines, f'export no_proxy="{HOST}${{no_proxy:+,$no_proxy}}"']) + "\n"
