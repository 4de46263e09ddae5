# SPDX-License-Identifier: Apache-2.0
"""Running real update servers (RMT): what they mirror and when, whom they share with, who may reach them."""
