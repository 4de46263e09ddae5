# SPDX-License-Identifier: Apache-2.0
"""Alembic's entry: runs the steps on the connection that the ledger hands over, in the ledger's own transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True, render_as_batch=True)
context.run_migrations()
