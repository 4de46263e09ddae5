# SPDX-License-Identifier: Apache-2.0
"""The verify stage: boot exactly the bytes that will be published, attack them, and judge them."""

from __future__ import annotations

from factory.verify.harness import verify, verify_file

__all__ = ["verify", "verify_file"]
