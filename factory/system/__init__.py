# SPDX-License-Identifier: Apache-2.0
"""The edge to the operating system: programs, files, locks, namespaces, clock."""
