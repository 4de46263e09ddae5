# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests from strangers."""

from __future__ import annotations

from flask import current_app, request
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge


def body_bytes() -> bytes:
    """The whole body, GET requests' too; raises a 413 where it is too long, a 400 where it cannot be read."""
    limit = current_app.config.get("MAX_CONTENT_LENGTH")
    try:
        found = request.get_data()
    except HTTPException:
        raise
    except Exception as wrong:  # gunicorn's complaints about chunks share no base with anything
        raise BadRequest("The request's body cannot be read") from wrong
    if limit is not None and len(found) >= limit:
        raise RequestEntityTooLarge
    return found
