# SPDX-License-Identifier: Apache-2.0
"""Region and update servers that answer, inside a network namespace, at the addresses an image knows.

Every server is a process of its own, so that one can be stopped to see instances move to another; all of them end with
the block, or with us.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

from factory.errors import CommandFailed, RegionError
from factory.inputs.lock import write_lock
from factory.inputs.view import RepositoryView
from factory.model import Region, RegionClient, Server
from factory.region import metadata_server
from factory.region.certificates import Issued, issue
from factory.region.config import OWN_PROVIDER, items, region_data, registry
from factory.region.online import handshake_problem
from factory.region.products import products
from factory.region.registrations import RegisteredSystem, Registrations
from factory.region.repositories import FolderRepository
from factory.region.update_settings import RecordedInputs, UpdateSettings, VerificationSettings, read_settings
from factory.system.namespaces import NetworkNamespace
from factory.system.run import last_lines, run, running

_HTTPS, _HTTP = 443, 80
_METADATA = "metadata-server"
_STAND_IN_DAYS = 30
_READY_S = 60.0
_GRACE_S = 3.0
_HANDSHAKE_S = 5.0
_PROBE = """
import http.client, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
for address in sys.argv[2:]:
    connection = http.client.HTTPSConnection(address, 443, timeout=float(sys.argv[1]), context=context)
    connection.request("GET", "/")
    connection.getresponse().read()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One server process: ``app`` is what gunicorn loads."""

    name: str
    addresses: tuple[str, ...]
    app: str
    certificate: Path | None = None
    key: Path | None = None
    gunicorn: str = "factory.region.gunicorn_settings"
    plain_port: int = _HTTP
    settings: Path | None = None

    @property
    def port(self) -> int:
        return _HTTPS if self.certificate else self.plain_port


@dataclass(slots=True, kw_only=True)
class RegionServices:
    """The servers that run, and what they saw.

    ``replacement_pems`` maps paths in the guest to the PEM that has to stand there for the sandbox, where the key of
    the image's own PEM is not ours. ``region_proof`` says which certificates a registration then proves.
    """

    namespace: NetworkNamespace
    replacement_pems: Mapping[str, str]
    region_proof: str
    region_addresses: tuple[str, ...]
    metadata_address: str
    update_addresses: tuple[str, ...]
    update_names: Mapping[str, str]
    log_dir: Path
    _parts: Sequence[_Part]
    _registrations: Registrations
    _running: dict[str, ExitStack] = field(default_factory=dict)

    def start(self, address: str) -> None:
        """Let the server at this address answer (again), and wait until it does.

        Raises:
            RegionError: it did not come up.
        """
        chosen = [part for part in self._at(address) if part.name not in self._running]
        for part in chosen:
            self._start(part)
        self._wait(chosen)

    def stop(self, address: str) -> None:
        """End the server at this address: connections are refused from now on."""
        for part in self._at(address):
            if stack := self._running.pop(part.name, None):
                stack.close()

    @contextlib.contextmanager
    def with_settings(
        self, *, verification: VerificationSettings, folders: Sequence[FolderRepository] = ()
    ) -> Iterator[None]:
        """Let update servers verify otherwise, and give out other folders, for the length of the block."""
        changed = {part.name: part.settings for part in self._parts if part.settings and part.name in self._running}
        before = {name: path.read_bytes() for name, path in changed.items()}
        try:
            for name, path in changed.items():
                self._running.pop(name).close()
                replace(read_settings(path), verification=verification, folders=tuple(folders)).write(path)
            self._start_again(changed)
            yield
        finally:
            for name, path in changed.items():
                if stack := self._running.pop(name, None):
                    stack.close()
                path.write_bytes(before[name])
            self._start_again(changed)

    def _start_again(self, names: Container[str]) -> None:
        chosen = [part for part in self._parts if part.name in names]
        for part in chosen:
            self._start(part)
        self._wait(chosen)

    def registrations(self) -> tuple[RegisteredSystem, ...]:
        """Who is registered, oldest first."""
        return self._registrations.systems()

    def forget(self, login: str) -> None:
        """Take a registration away behind its owner's back."""
        self._registrations.remove(login)

    def access_log(self, address: str) -> str:
        """What the server at this address was asked, one request a line."""
        logs = (self._log(part) for part in self._at(address) if part.certificate or part.name == _METADATA)
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def _at(self, address: str) -> list[_Part]:
        found = [part for part in self._parts if address in part.addresses]
        if not found:
            raise RegionError(f"there is no server at {address} in this sandbox")
        return found

    def _log(self, part: _Part) -> Path:
        return self.log_dir / f"{part.name}.log"

    def _start(self, part: _Part) -> None:
        with ExitStack() as stack:
            sockets = [stack.enter_context(self.namespace.listen(address, part.port)) for address in part.addresses]
            descriptors = [socket.fileno() for socket in sockets]
            keep = ExitStack()
            keep.enter_context(self._process(part, descriptors))
        self._running[part.name] = keep

    def _process(self, part: _Part, descriptors: Sequence[int]) -> AbstractContextManager[object]:
        # the module is named by argument, so nothing of this process's environment is needed
        argv: list[str | Path] = [sys.executable, "-P", "-m", "gunicorn"]
        argv += ["--config", f"python:{part.gunicorn}"]
        for descriptor in descriptors:
            argv += ["--bind", f"fd://{descriptor}"]
        if part.certificate and part.key:
            argv += ["--certfile", part.certificate, "--keyfile", part.key]
        argv += [part.app]
        return running(argv, log=self._log(part), cwd=Path("/"), pass_fds=descriptors, grace_s=_GRACE_S)

    def _wait(self, parts: Sequence[_Part]) -> None:
        """The backlog takes connections from the start, so asking once is waiting; a dead server resets them."""
        addresses = [address for part in parts for address in part.addresses if part.port == _HTTPS]
        argv = [sys.executable, "-c", _PROBE, str(_READY_S), *addresses]
        try:
            run(self.namespace.inside(argv), timeout_s=_READY_S + 10)
        except CommandFailed as failed:
            said = [
                (part.name, last_lines(self._log(part), size_bytes=600)) for part in parts if self._log(part).exists()
            ]
            raise RegionError(
                "the sandbox's region and update servers did not start",
                facts=tuple((name, line) for name, text in said for line in text.strip().splitlines()[-3:]),
                hint=f"see the logs below '{self.log_dir}'",
            ) from failed

    def close(self) -> None:
        """End everything."""
        for stack in self._running.values():
            stack.close()
        self._running.clear()
        self._registrations.close()


@contextlib.contextmanager
def serve(
    namespace: NetworkNamespace,
    regions: Sequence[Region],
    *,
    view: RepositoryView,
    product: str,
    workdir: Path,
    log_dir: Path,
    now: datetime,
    say: Callable[[str], None],
    client: RegionClient | None = None,
    handshake: bool = True,
    verification: VerificationSettings | None = None,
    folders: Sequence[FolderRepository] = (),
) -> Iterator[RegionServices]:
    """Play all servers of these regions for the length of the block.

    The servers' addresses are added to the namespace's loopback device where they are missing. Where a server's key is
    not ours, a stand-in certificate is made below ``workdir``.

    Args:
        view: what update servers give out.
        product: NAME/VERSION/ARCH that may register; others get 422.
        client: where images keep the PEMs, and whether port 80 must answer.
        verification: how update servers verify instances (default: where ``client`` names our data provider, that what
            it prints is an instance of the product; else not at all).
        folders: what update servers give out besides ``view``.
        handshake: also ask the real region servers whose keys are not ours, for ``region_proof``.

    Raises:
        InputFault: the regions cannot be served.
        RegionError: a server did not start.
    """
    client = client or RegionClient()
    workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_dir.mkdir(parents=True, exist_ok=True)
    metadata = metadata_server.place(client)
    stage = _Stage(Path(tempfile.mkdtemp(prefix="region-", dir=workdir)), now)
    played = [stage.play(region) for region in regions]
    _add_addresses(namespace, [*_addresses(played), *([metadata.address] if metadata else [])])
    registrations = Registrations(stage.folder / "registrations.sqlite")
    services = RegionServices(
        namespace=namespace,
        replacement_pems=_replacements(regions, played, client),
        region_proof=region_proof(regions, reached=shake_hands(regions, client) if handshake else ()),
        region_addresses=tuple(address for server in _region_servers(played) for address in server.addresses),
        metadata_address=metadata.address if metadata else "",
        update_addresses=tuple(address for server in _update_servers(played) for address in server.addresses),
        update_names={address: one.name for one in _update_servers(played) for address in one.addresses},
        log_dir=log_dir,
        _parts=stage.parts(
            played,
            view=view,
            product=product,
            https_only=client.https_only,
            verification=verification or verification_for(client),
            folders=tuple(folders),
            metadata=metadata,
        ),
        _registrations=registrations,
    )
    try:
        for part in services._parts:  # noqa: SLF001 - same module: all start, then all are waited for
            services._start(part)  # noqa: SLF001
        services._wait(services._parts)  # noqa: SLF001
        say(
            f"region and update servers answer at {', '.join((*services.region_addresses, *services.update_addresses))}"
        )
        yield services
    finally:
        services.close()


def verification_for(client: RegionClient) -> VerificationSettings:
    """What the sandbox can ask of images with these settings: a signature only a cloud can give."""
    ours = client.data_provider.split()[:1] == [OWN_PROVIDER]
    return VerificationSettings(provider="openstack" if ours else "none")


def region_proof(regions: Sequence[Region], *, reached: Sequence[str] = ()) -> str:
    """Which certificates a registration in the sandbox proves, in words; ``reached`` names servers that shook hands."""
    servers = _region_servers(regions)
    ours = [server.name for server in servers if server.key]
    foreign = [server.name for server in servers if not server.key]
    said = []
    if ours:
        kind = "throw-away " if all(region.embedded for region in regions) else ""
        said.append(f"registration with the image's own {kind}certificates of {', '.join(ours)}")
    if foreign:
        said.append(
            f"for {', '.join(foreign)} the key is not ours: registration with a stand-in certificate, "
            "the image's own one by the static rules"
        )
        real = [name for name in foreign if name in reached]
        said.append(f"and by a TLS handshake with {', '.join(real)}" if real else "and by no TLS handshake")
    return "; ".join(said) or "no region server"


def shake_hands(regions: Sequence[Region], client: RegionClient) -> tuple[str, ...]:
    """The names of the region servers of others that can be reached from here and accept what images pin."""
    refused = set()
    foreign = {item: server for item, server in items(regions).items() if server.key is None}
    for item, server in foreign.items():
        if handshake_problem(item, server.pem.read_text(), client.api, timeout_s=_HANDSHAKE_S):
            refused.add(server.name)
    return tuple(dict.fromkeys(server.name for server in foreign.values() if server.name not in refused))


def _region_servers(regions: Sequence[Region]) -> tuple[Server, ...]:
    return tuple({server.name: server for region in regions for server in region.servers}.values())


def _update_servers(regions: Sequence[Region]) -> tuple[Server, ...]:
    return tuple({server.name: server for region in regions for server in region.update_servers}.values())


def _addresses(regions: Sequence[Region]) -> Iterator[str]:
    for server in (*_region_servers(regions), *_update_servers(regions)):
        yield from server.addresses


def _add_addresses(namespace: NetworkNamespace, addresses: Sequence[str]) -> None:
    shown = run(namespace.inside(["ip", "-json", "address", "show", "dev", "lo"]), timeout_s=20).stdout
    there = {ip_address(found["local"]) for link in json.loads(shown) for found in link.get("addr_info", ())}
    for address in addresses:
        if ip_address(address) not in there:
            namespace.add_address(address)
            there.add(ip_address(address))


def _replacements(regions: Sequence[Region], played: Sequence[Region], client: RegionClient) -> Mapping[str, str]:
    ours = items(played)
    return {
        f"{client.cert_location.rstrip('/')}/{item}.pem": ours[item].pem.read_text()
        for item, server in items(regions).items()
        if server.key is None
    }


class _Stage:
    """The folder in which the servers of one sandbox find their files, and the stand-ins made for it."""

    def __init__(self, folder: Path, now: datetime) -> None:
        self.folder = folder
        self.now = now
        self._authority: Issued | None = None
        self._claimed: set[str] = set()

    def play(self, region: Region) -> Region:
        """The region with keys for every server, answering in the sandbox too.

        In the sandbox a server sees its own address as the guest's, so those count as networks of the first region.
        """
        seen = [str(ip_network(network)) for network in region.networks]
        own = {str(ip_network(address)) for server in region.servers for address in server.addresses} - self._claimed
        self._claimed |= own
        return replace(
            region,
            networks=tuple(dict.fromkeys([*seen, *sorted(own)])),
            servers=tuple(self._region_server(server) for server in region.servers),
            update_servers=tuple(self._update_server(server) for server in region.update_servers),
        )

    def _region_server(self, server: Server) -> Server:
        if server.key is not None:
            return server
        certificate, key = self._stand_in(server, authority=None)
        return replace(server, pem=certificate, key=key)

    def _update_server(self, server: Server) -> Server:
        if server.key is not None and server.certificate is not None:
            return server
        if self._authority is None:
            self._authority = issue(
                "CA of the sandbox", now=self.now, days=_STAND_IN_DAYS, is_authority=True, throw_away=True
            )
            self._authority.write(self.folder, "stand-in-ca")
        certificate, key = self._stand_in(server, authority=self._authority)
        return replace(server, pem=self.folder / "stand-in-ca.pem", certificate=certificate, key=key)

    def _stand_in(self, server: Server, *, authority: Issued | None) -> tuple[Path, Path]:
        made = issue(
            server.name,
            now=self.now,
            days=_STAND_IN_DAYS,
            names=list(dict.fromkeys([server.name, registry(server)])),
            addresses=server.addresses,
            authority=authority,
            throw_away=True,
        )
        return made.write(self.folder, f"stand-in-{_file_name(server.name)}")

    def parts(
        self,
        regions: Sequence[Region],
        *,
        view: RepositoryView,
        product: str,
        https_only: bool,
        verification: VerificationSettings,
        folders: tuple[FolderRepository, ...],
        metadata: metadata_server.Place | None,
    ) -> tuple[_Part, ...]:
        """The processes to run, with the files they read written."""
        data = self.folder / "regionData.cfg"
        data.write_text(region_data(regions))
        found = [
            _Part(
                name=f"region-server-{_file_name(server.name)}",
                addresses=server.addresses,
                app=f"factory.region.server:create_app({str(data)!r})",
                certificate=server.pem,
                key=server.key,
            )
            for server in _region_servers(regions)
            if server.addresses
        ]
        write_lock(self.folder / "inputs.lock", view.inputs.values())
        for server in _update_servers(regions):
            settings = UpdateSettings(
                fqdn=server.name,
                ca=str(server.pem),
                database=str(self.folder / "registrations.sqlite"),
                products=products((product,)),
                verification=verification,
                folders=folders,
                recorded=RecordedInputs(
                    lock=str(self.folder / "inputs.lock"), blobs=str(view.blobs), repositories=view.repositories
                ),
            )
            found.append(self._update_part(server, settings, certificate=server.certificate, key=server.key))
            if not https_only:
                found.append(self._update_part(server, replace(settings, plain=True), certificate=None, key=None))
        if metadata:
            found.append(self._metadata_part(metadata, _update_servers(regions)))
        return tuple(found)

    def _metadata_part(self, place: metadata_server.Place, servers: Sequence[Server]) -> _Part:
        path = self.folder / f"{_METADATA}.json"
        path.write_text(metadata_server.settings(place.path, servers))
        return _Part(
            name=_METADATA,
            addresses=(place.address,),
            app=f"factory.region.metadata_server:create_app({str(path)!r})",
            plain_port=place.port,
        )

    def _update_part(
        self, server: Server, settings: UpdateSettings, *, certificate: Path | None, key: Path | None
    ) -> _Part:
        name = f"update-server-{_file_name(server.name)}" + ("-http" if settings.plain else "")
        path = self.folder / f"{name}.json"
        settings.write(path)
        return _Part(
            name=name,
            settings=path,
            addresses=server.addresses,
            app=f"factory.region.update:create_app({str(path)!r})",
            gunicorn="factory.region.update_gunicorn",
            certificate=certificate,
            key=key,
        )


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)
