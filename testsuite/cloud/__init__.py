# SPDX-License-Identifier: Apache-2.0
"""A whole real OpenStack with compute on this host, for tests."""

from __future__ import annotations

from testsuite.cloud.compute import ComputeCloud, attached, compute_cloud, ready_file
from testsuite.cloud.environment import environment
from testsuite.cloud.ground import left_of
from testsuite.cloud.register import Flavors

__all__ = ["ComputeCloud", "Flavors", "attached", "compute_cloud", "environment", "left_of", "ready_file"]
