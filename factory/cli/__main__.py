# SPDX-License-Identifier: Apache-2.0
"""``python -m factory.cli``."""

from factory.cli import main

main()
