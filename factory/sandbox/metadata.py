# SPDX-License-Identifier: Apache-2.0
"""OpenStack's metadata service, for one guest: what a seed says, at 169.254.169.254 inside the guest's namespace.

The layout is that of OpenStack's "Metadata service" user guide: ``/openstack`` lists versions, ``/openstack/latest``
the files. cloud-init asks for it when the machine's product name is Nova's. The server runs in a thread of ours on a
socket made in the namespace, and writes nothing down.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from factory.errors import CommandFailed, SandboxError
from factory.system.namespaces import NetworkNamespace

ADDRESS = "169.254.169.254"
_PORT = 80


def answer(files: Mapping[str, str], path: str) -> str | None:
    """The body for a request path: a file, or the names in a folder; None when there is neither. Pure."""
    wanted = path.split("?", 1)[0].strip("/")
    if wanted in files:
        return files[wanted]
    prefix = f"{wanted}/" if wanted else ""
    names = {name.removeprefix(prefix).split("/", 1)[0] for name in files if name.startswith(prefix)}
    return "\n".join(sorted(names)) if names else None


@contextlib.contextmanager
def metadata_service(namespace: NetworkNamespace, files: Mapping[str, str]) -> Iterator[None]:
    """Serve ``files`` for the length of the block; the address is unreachable before and after.

    Raises:
        SandboxError: another guest of this namespace has its metadata there.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            body = answer(files, self.path)
            data = b"" if body is None else body.encode()
            self.send_response(HTTPStatus.NOT_FOUND if body is None else HTTPStatus.OK)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_words: object) -> None:
            """Say nothing: a seed may hold a password."""

    try:
        namespace.add_address(ADDRESS)
    except CommandFailed as taken:
        raise SandboxError(
            "the metadata address of this sandbox is taken", hint="one guest at a time reads OpenStack metadata"
        ) from taken
    server = ThreadingHTTPServer((ADDRESS, _PORT), Handler, bind_and_activate=False)
    thread = threading.Thread(target=server.serve_forever, name="metadata", daemon=True)
    try:
        server.socket.close()
        server.socket = namespace.listen(ADDRESS, _PORT)
        thread.start()
        yield
        server.shutdown()
    finally:
        server.server_close()
        namespace.drop_address(ADDRESS)
