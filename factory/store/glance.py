# SPDX-License-Identifier: Apache-2.0
"""Glance through openstacksdk: its authentication, catalogue and session, and one plain request per call.

The SDK's own ``update_image(object)`` sends a difference against a copy that may be stale and asks to remove what the
copy lacks; ``create_image`` and ``find_image`` look names up first. So the requests are written here: each PATCH is
``add`` operations only, which Glance applies all or not at all, and which may be sent again after a lost answer.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlencode

from factory.errors import StoreError
from factory.model import StoredImage
from factory.store.protocol import IdTaken, NotWanted
from factory.system.files import Digests
from factory.system.openstack import connect

if TYPE_CHECKING:
    from openstack.connection import Connection
    from requests import Response

Observer = Callable[[Literal["before", "after"], str], None]
"""Told of every attempt to send a request, as ``METHOD path``: for a journal, and for tests that stop us there."""

Answer = TypeVar("Answer")
_PATCH_TYPE = "application/openstack-images-v2.1-json-patch"
_CHUNK_BYTES = 1 << 20
_PAGE = 500
_READS = 10
_CALM_S = (0.2, 0.5, 1.0, 2.0, 4.0)
_URGENT_S = (0.05,) * 20 + (0.25,) * 40 + (1.0,) * 50
_TIMEOUT_S = (10.0, 60.0)
_UPLOAD_TIMEOUT_S = (10.0, 900.0)
_PASSING = frozenset({429, 500, 502, 503, 504})
_FIELDS = frozenset(
    [
        "id",
        "name",
        "status",
        "os_hidden",
        "visibility",
        "protected",
        "owner",
        "size",
        "virtual_size",
        "os_hash_algo",
        "os_hash_value",
        "created_at",
        "updated_at",
        "tags",
        "checksum",
        "self",
        "file",
        "schema",
        "locations",
        "direct_url",
        "stores",
    ]
)
_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _TOO_LARGE, _WRONG_TYPE, _BAD = (
    200, 401, 403, 404, 409, 413, 415, 400,
)  # fmt: skip
_HINTS = {
    _UNAUTHORIZED: "check the credentials of this cloud in clouds.yaml",
    _FORBIDDEN: "the user may not do this here; to publish, it needs a role that may publicize images, or set the "
    "target's visibility to 'community' or 'private'",
    _TOO_LARGE: "a quota or the cloud's limit for images; delete old images or have it raised",
}


def unobserved(_when: Literal["before", "after"], _request: str) -> None:
    """Nobody watches."""


def connect_glance(
    cloud: str,
    *,
    clouds_yaml: Path | None = None,
    direct: bool = False,
    region_name: str = "",
    holder: str = "",
    observer: Observer = unobserved,
    without: Sequence[str] = (),
) -> GlanceStore:
    """The Glance of a cloud in clouds.yaml (``clouds_yaml``, else where openstacksdk looks); nothing is sent yet.

    Args:
        without: what this cloud's Glance lacks, see :mod:`factory.store.narrow`.

    Raises:
        StoreError: no such cloud there.
    """
    from openstack.exceptions import SDKException

    try:
        connection = connect(cloud, clouds_yaml=clouds_yaml, direct=direct, region_name=region_name)
    except SDKException as failed:
        raise StoreError(
            f"the cloud '{cloud}' cannot be used", hint="name a cloud of your clouds.yaml in site.toml, [[target]]"
        ) from failed
    if without:
        from factory.store.narrow import NarrowGlance

        return NarrowGlance(connection, cloud=cloud, without=without, holder=holder, observer=observer)
    return GlanceStore(connection, cloud=cloud, holder=holder, observer=observer)


class GlanceStore:
    """An :class:`factory.store.ImageStore` on a real Glance."""

    def __init__(
        self, connection: Connection, *, cloud: str, holder: str = "", observer: Observer = unobserved
    ) -> None:
        self._connection = connection
        self._cloud = cloud
        self._observer = observer
        self._holder = holder
        self._project_id = ""
        self._date = ""

    @property
    def holder(self) -> str:
        return self._holder

    @property
    def project_id(self) -> str:
        if not self._project_id:
            self._project_id = str(self._authorized(lambda: self._connection.current_project_id))
        return self._project_id

    @property
    def clock(self) -> datetime | None:
        try:
            there = email.utils.parsedate_to_datetime(self._date)
        except ValueError:
            return None
        return there.replace(tzinfo=there.tzinfo or UTC)

    def close(self) -> None:
        """Close the connections to the cloud."""
        self._connection.close()

    # -- reading --------------------------------------------------------------------------------------------------

    def list_line(self, line: str) -> tuple[StoredImage, ...]:
        found = self._settled({"imgfactory_line": line, "owner": self.project_id})
        return _newest_first(image for image in found if image.line == line and image.owner == self.project_id)

    def list_all(self) -> tuple[StoredImage, ...]:
        found = self._settled({"owner": self.project_id})
        return _newest_first(image for image in found if image.owner == self.project_id)

    def named(self, *names: str) -> tuple[StoredImage, ...]:
        quoted = ",".join(f'"{name}"' for name in names)
        return _newest_first(image for image in self._settled({"name": f"in:{quoted}"}) if image.name in names)

    def shown(self, properties: Mapping[str, str]) -> tuple[StoredImage, ...]:
        return _newest_first(iter(self._list(properties, hidden=False).values()))

    def get(self, image_id: str) -> StoredImage | None:
        answer = self._send("GET", f"/images/{image_id}", accept=(_OK, _NOT_FOUND))
        return parse(answer.json()) if answer.status_code == _OK else None

    def read_back(self, image_id: str) -> Digests:
        sha256, sha512, size = hashlib.sha256(), hashlib.sha512(), 0
        answer = self._send("GET", f"/images/{image_id}/file", timeout=_UPLOAD_TIMEOUT_S, stream=True)
        with answer:
            for chunk in answer.iter_content(_CHUNK_BYTES):
                sha256.update(chunk)
                sha512.update(chunk)
                size += len(chunk)
        return Digests(sha256=sha256.hexdigest(), sha512=sha512.hexdigest(), size_bytes=size)

    def _settled(self, filters: Mapping[str, str]) -> tuple[StoredImage, ...]:
        """Visible and hidden images in one picture: no single request lists both, and one may flip in between."""
        visible = self._list(filters, hidden=False)
        for _ in range(_READS):
            hidden = self._list(filters, hidden=True)
            again = self._list(filters, hidden=False)
            if again == visible and not (visible.keys() & hidden.keys()):
                return (*visible.values(), *hidden.values())
            visible = again
        raise StoreError(
            f"the images in '{self._cloud}' changed during each of {_READS} reads",
            hint="somebody else works on them; try again later",
        )

    def _list(self, filters: Mapping[str, str], *, hidden: bool | None) -> dict[str, StoredImage]:
        found: dict[str, StoredImage] = {}
        query = {**filters, "visibility": "all", "limit": str(_PAGE)}
        if hidden is not None:
            query["os_hidden"] = str(hidden).lower()
        while True:
            body = self._send("GET", f"/images?{urlencode(query)}").json()
            images = [parse(record) for record in body["images"]]
            found |= {image.id: image for image in images}
            if "next" not in body or not images:
                return found
            query["marker"] = images[-1].id

    # -- writing --------------------------------------------------------------------------------------------------

    def create(self, image_id: str, attributes: Mapping[str, object]) -> StoredImage:
        body = {"disk_format": "qcow2", "container_format": "bare", **attributes}
        if image_id:
            body["id"] = image_id
        answer = self._send("POST", "/images", json=body, accept=(201, _CONFLICT))
        if answer.status_code == _CONFLICT:
            raise IdTaken(f"the image id {image_id} is taken or burnt in '{self._cloud}'", facts=(_said(answer),))
        return parse(answer.json())

    def upload(self, image_id: str, path: Path) -> None:
        self._authorized(self._connection.session.get_token)  # a refused token would cost a second upload
        answer = self._send(
            "PUT",
            f"/images/{image_id}/file",
            delays_s=(),  # what arrived of a broken upload has to be looked at first
            accept=(204, _CONFLICT, _WRONG_TYPE),
            data=_FileBody(path),
            headers={"Content-Type": "application/octet-stream"},
            timeout=_UPLOAD_TIMEOUT_S,
        )
        if answer.status_code in {_CONFLICT, _WRONG_TYPE}:
            raise NotWanted(f"'{self._cloud}' refused the bytes of '{path.name}'", facts=(_said(answer),))

    def patch(self, image_id: str, change: Mapping[str, object]) -> StoredImage:
        return self._patch(image_id, patch_body(change), _CALM_S)

    def prepare(self, image_id: str, change: Mapping[str, object]) -> Callable[[], StoredImage]:
        body = patch_body(change)
        self._authorized(self._connection.session.get_token)
        return lambda: self._patch(image_id, body, _URGENT_S)

    def deactivate(self, image_id: str) -> None:
        self._send("POST", f"/images/{image_id}/actions/deactivate", accept=(204,))

    def delete(self, image_id: str) -> None:
        self._send("DELETE", f"/images/{image_id}", accept=(204, _NOT_FOUND))

    def _patch(self, image_id: str, body: bytes, delays_s: Sequence[float]) -> StoredImage:
        headers = {"Content-Type": _PATCH_TYPE}
        answer = self._send("PATCH", f"/images/{image_id}", delays_s=delays_s, data=body, headers=headers)
        return parse(answer.json())

    # -- as it is ---------------------------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """One request and its answer, whatever that is; for looking at a cloud, not for working with it.

        Raises:
            StoreError: no answer, or the cloud is in trouble, twice.
        """
        return self._send(
            method, path, delays_s=_CALM_S[:1], accept=range(500), json=json, data=data, headers=dict(headers or {})
        )

    def address(self) -> str:
        """Where the image service of this cloud is."""
        return str(self._authorized(self._connection.image.get_endpoint))

    # -- one request ----------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        *,
        delays_s: Sequence[float] = _CALM_S,
        accept: Sequence[int] = (_OK,),
        timeout: tuple[float, float] = _TIMEOUT_S,
        **options: object,
    ) -> Response:
        """Send, and send again after each delay while the store does not answer or says that it cannot now."""
        name = f"{method} {path}"
        for delay_s in (*delays_s, None):
            self._observer("before", name)
            answer, failed = self._attempt(method, path, timeout=timeout, **options)
            self._observer("after", name)
            if answer is not None and answer.status_code not in _PASSING:
                break
            if delay_s is None:
                raise StoreError(
                    f"the image service of '{self._cloud}' does not answer"
                    if answer is None
                    else f"the image service of '{self._cloud}' is in trouble (status {answer.status_code})",
                    facts=(("request", name), *((_said(answer),) if answer is not None else ())),
                    hint="see that the cloud is up ('factory cloud status' for the embedded one), then run this again",
                ) from failed
            time.sleep(delay_s)
        assert answer is not None
        self._date = answer.headers.get("Date", self._date)
        if answer.status_code not in accept:
            raise StoreError(
                f"the image service of '{self._cloud}' refused a request (status {answer.status_code})",
                facts=(("request", name), _said(answer)),
                hint=_HINTS.get(answer.status_code, ""),
            )
        return answer

    def _attempt(self, method: str, path: str, **options: object) -> tuple[Response | None, Exception | None]:
        return self._asked(
            lambda: self._connection.image.request(path, method, raise_exc=False, connect_retries=0, **options)
        )

    def _authorized(self, ask: Callable[[], Answer]) -> Answer:
        """Ask what needs no more than a token, again after each delay while Keystone does not answer."""
        for delay_s in (*_CALM_S, None):
            answer, failed = self._asked(ask)
            if failed is None:
                assert answer is not None
                return answer
            if delay_s is None:
                raise self._no_entry(failed) from failed
            time.sleep(delay_s)
        raise AssertionError

    def _asked(self, ask: Callable[[], Answer]) -> tuple[Answer | None, Exception | None]:
        """The answer, or what kept it from coming and may pass.

        Raises:
            StoreError: this cloud gives us no access.
        """
        from keystoneauth1 import exceptions as failures
        from openstack.exceptions import SDKException, ServiceDiscoveryException

        try:
            return ask(), None
        except failures.SSLError as failed:
            raise self._not_trusted(failed) from failed
        except (failures.DiscoveryFailure, ServiceDiscoveryException) as failed:
            self._expect_tls()
            return None, failed
        except (failures.ConnectionError, failures.RetriableConnectionFailure) as failed:
            return None, failed
        except failures.HttpError as failed:  # from Keystone, on the way to a token
            if failed.http_status in _PASSING:
                return None, failed
            raise self._no_entry(failed) from failed
        except (failures.ClientException, SDKException) as failed:
            raise self._no_entry(failed) from failed

    def _expect_tls(self) -> None:
        """Raise when it is its certificate that keeps us from the image service: keystoneauth's discovery hides why."""
        from keystoneauth1 import exceptions as failures

        config, session = self._connection.config, self._connection.session
        try:
            address = config.get_endpoint("image") or session.get_endpoint(
                service_type="image",
                interface=config.get_interface("image"),
                region_name=config.get_region_name("image"),
            )
            session.get(address, authenticated=False, raise_exc=False, connect_retries=0, timeout=_TIMEOUT_S)
        except failures.SSLError as failed:
            raise self._not_trusted(failed) from failed
        except failures.ClientException:
            return

    def _not_trusted(self, failed: Exception) -> StoreError:
        return StoreError(
            f"the cloud '{self._cloud}' is not who it says it is, or speaks no TLS",
            facts=(("said", _plain(str(failed))),),
            hint="check its address; for a certificate authority of its own set 'cacert' in clouds.yaml",
        )

    def _no_entry(self, failed: Exception) -> StoreError:
        status = getattr(failed, "http_status", 0)
        hint = _HINTS.get(status, "see that the cloud is up ('factory cloud status' for the embedded one)")
        return StoreError(
            f"the cloud '{self._cloud}' gives no access", facts=(("said", _plain(str(failed))),), hint=hint
        )


class _FileBody:
    """A file as a request body in large chunks; begins anew each time it is sent."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __len__(self) -> int:
        return self._path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


def patch_body(change: Mapping[str, object]) -> bytes:
    """A JSON patch that sets every key: ``add`` overwrites what is there and may be sent twice."""
    escaped = {key.replace("~", "~0").replace("/", "~1"): value for key, value in change.items()}
    return json.dumps([{"op": "add", "path": f"/{key}", "value": value} for key, value in escaped.items()]).encode()


def parse(record: Mapping[str, Any]) -> StoredImage:
    """Glance's JSON for an image as a value."""
    return StoredImage(
        id=record["id"],
        name=record.get("name") or "",
        status=record["status"],
        hidden=bool(record.get("os_hidden", False)),
        visibility=record["visibility"],
        protected=bool(record.get("protected", False)),
        owner=record.get("owner") or "",
        size_bytes=record.get("size"),
        virtual_size_bytes=record.get("virtual_size"),
        hash_algo=record.get("os_hash_algo") or "",
        hash_value=record.get("os_hash_value") or "",
        created_at=datetime.fromisoformat(record["created_at"]),
        updated_at=datetime.fromisoformat(record["updated_at"]),
        properties={key: str(value) for key, value in record.items() if key not in _FIELDS and value is not None},
        tags=tuple(sorted(record.get("tags", ()))),
    )


def _newest_first(images: Iterator[StoredImage]) -> tuple[StoredImage, ...]:
    return tuple(sorted(images, key=lambda image: (image.generation, image.created_at, image.id), reverse=True))


def _said(answer: Response) -> tuple[str, str]:
    return "said", _plain(answer.text)


def _plain(text: str) -> str:
    """What a server said, on one line, without markup or control characters."""
    import re

    words = re.sub(r"<[^>]*>", " ", text)
    return " ".join("".join(character if character.isprintable() else " " for character in words).split())[:300]
