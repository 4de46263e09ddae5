# SPDX-License-Identifier: Apache-2.0
"""The one door to OpenStack clouds: a connection by its name in a clouds.yaml."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openstack.connection import Connection


def connect(cloud: str, *, clouds_yaml: Path | None = None, direct: bool = False, region_name: str = "") -> Connection:
    """An openstacksdk connection; nothing is sent yet.

    Args:
        cloud: its name in clouds.yaml.
        clouds_yaml: the file; None lets openstacksdk search its usual places.
        direct: reach it without the proxy of the caller's environment (a cloud on loopback).

    Raises:
        openstack.exceptions.SDKException: no such cloud, or a malformed file.
    """
    import openstack.config
    import requests
    from keystoneauth1 import session as keystone_session

    options: dict[str, Any] = {"load_envvars": clouds_yaml is None, "app_name": "image-factory"}
    if clouds_yaml is not None:
        options["config_files"] = [str(clouds_yaml)]
    if direct:
        transport = requests.Session()
        transport.trust_env = False
        options["session_constructor"] = functools.partial(keystone_session.Session, session=transport)
    region = {"region_name": region_name} if region_name else {}
    config = openstack.config.OpenStackConfig(**options).get_one(cloud=cloud, **region)
    return openstack.connection.Connection(config=config)
