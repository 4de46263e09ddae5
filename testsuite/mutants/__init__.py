# SPDX-License-Identifier: Apache-2.0
"""Every check of the acceptance suite is seen red on an image spoiled in just that way."""
