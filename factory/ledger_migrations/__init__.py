# SPDX-License-Identifier: Apache-2.0
"""The ledger's schema, step by step (Alembic); applied by :meth:`factory.ledger.Ledger.open`, never by hand."""
