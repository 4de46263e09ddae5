# SPDX-License-Identifier: Apache-2.0
"""A single file whose digest a person wrote down: fetched once, kept by content, never larger than said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from factory.errors import InputsError
from factory.inputs.blobs import BlobStore, Incoming
from factory.inputs.upstream import Upstream
from factory.system.files import Digests, digests

_MIB = 1 << 20


def fetch_pinned(
    address: str, *, sha256: str, sha512: str, limit_bytes: int, store: BlobStore, upstream: Upstream
) -> Digests:
    """The digests of the file, which is in the store afterwards; it is fetched only when it is not there.

    What an earlier try left of it is gone on with.

    Args:
        sha256, sha512: what the file must have; one of them may be empty.

    Raises:
        InputsError: nobody answers, the file is larger than the limit, or it is another one.
    """
    store.prepare()
    with store.alone(sha256 or sha512):
        found = store.known(sha256) if sha256 else _known(store, sha512)
        if found is None:
            with store.resumed(sha256 or sha512) as incoming:
                resumed = incoming.size_bytes > 0
                _receive(address, incoming, limit_bytes=limit_bytes, upstream=upstream)
                if resumed and not _is(incoming.digests, sha256, sha512):
                    incoming.restart()  # the half was of something else
                    _receive(address, incoming, limit_bytes=limit_bytes, upstream=upstream)
                found = incoming.digests
                if _is(found, sha256, sha512):
                    return store.keep(incoming)
                incoming.restart()
    if not _is(found, sha256, sha512):
        pins = [("pinned", f"{kind} {digest}") for kind, digest in (("sha256", sha256), ("sha512", sha512)) if digest]
        served = (("served", f"sha256 {found.sha256}"), ("served", f"sha512 {found.sha512}, {found.size_bytes} bytes"))
        raise InputsError(
            f"'{address.rpartition('/')[2]}' is not the file that is pinned",
            facts=(("address", address), *pins, *served),
            hint="a new version has its own pins: compare them with the vendor's word before you write them down",
        )
    return found


@contextlib.contextmanager
def fetched_small(address: str, *, limit_bytes: int, store: BlobStore, upstream: Upstream) -> Iterator[Incoming]:
    """A small file that nothing pins, for the length of the block; it stays in the store when it is kept there.

    Raises:
        InputsError: nobody answers, or it is larger than the limit.
    """
    store.prepare()
    with store.incoming() as incoming:
        _receive(address, incoming, limit_bytes=limit_bytes, upstream=upstream)
        yield incoming


def _known(store: BlobStore, sha512: str) -> Digests | None:
    path: Path = store.path(sha512)
    if not path.is_file():
        return None
    found = digests(path)
    return found if found.sha512 == sha512 else None


def _is(found: Digests, sha256: str, sha512: str) -> bool:
    return sha256 in {"", found.sha256} and sha512 in {"", found.sha512}


def _receive(address: str, incoming: Incoming, *, limit_bytes: int, upstream: Upstream) -> None:
    start = incoming.size_bytes
    with upstream.get(address, start=start) as (status, body):
        if status == HTTPStatus.OK and start:
            incoming.restart()
        elif status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # the whole is here
        elif status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            raise InputsError(
                f"the vendor does not serve '{address.rpartition('/')[2]}'",
                facts=(("address", address), ("status", str(int(status)))),
                hint="vendors take old versions away: pin the present one, or name a mirror that keeps it",
            )
        for chunk in body:
            if incoming.size_bytes + len(chunk) > limit_bytes:
                incoming.restart()
                raise InputsError(
                    f"'{address.rpartition('/')[2]}' is larger than {limit_bytes / _MIB:.0f} MiB",
                    facts=(("address", address),),
                    hint="raise foreign.max_mib in image.toml when that is right",
                )
            incoming.write(chunk)
