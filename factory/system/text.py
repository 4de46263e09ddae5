# SPDX-License-Identifier: Apache-2.0
"""Other people's text on a terminal or in a log."""

from __future__ import annotations


def visible(text: object) -> str:
    """One line in which characters that hide, move or end others are shown instead of obeyed."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(text))
