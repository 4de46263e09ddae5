# SPDX-License-Identifier: Apache-2.0
"""Image Factory: from a version-controlled description to a signed, tested ``<line>_latest`` in Glance."""

__version__ = "0.1.0"
