# SPDX-License-Identifier: Apache-2.0
"""The embedded Keystone and Glance on loopback: the one declared daemon."""

from __future__ import annotations

from factory.cloud.embedded import CloudAccess, down, env, status, up

__all__ = ["CloudAccess", "down", "env", "status", "up"]
