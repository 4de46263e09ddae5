# SPDX-License-Identifier: Apache-2.0
"""Where images are published: Glance, and the download directory."""

from __future__ import annotations

from factory.store.opening import open_store
from factory.store.protocol import IdTaken, ImageStore, NotWanted

__all__ = ["IdTaken", "ImageStore", "NotWanted", "open_store"]
