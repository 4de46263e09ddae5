# SPDX-License-Identifier: Apache-2.0
"""A whole real OpenStack with compute, for the length of a block: Keystone, Glance, Placement, Neutron, Nova, QEMU.

Every service runs in one box (:mod:`testsuite.cloud.box`) that dies with us, and keeps everything below one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from factory.cloud import settings as identity_settings
from factory.cloud.settings import ADMIN, HOST, PUBLISHER, READER, Layout
from factory.errors import CloudError
from factory.system.files import write_whole
from factory.system.namespaces import NetworkNamespace
from factory.system.openstack import connect
from testsuite.cloud import settings as texts
from testsuite.cloud.box import Box
from testsuite.cloud.environment import environment
from testsuite.cloud.ground import Ground, ground, start_libvirt
from testsuite.cloud.network import GuestsNetwork
from testsuite.cloud.register import Flavors, await_compute, register_flavors, register_identities, register_network
from testsuite.cloud.settings import SANDBOX, Ports, Settings

Say = Callable[[str], None]

_FIRST_PORT, _LAST_PORT = 21000, 32000
_START_S = 120.0
_IDENTITY = """
import sys
from pathlib import Path
from factory import cloud
cloud.up(Path(sys.argv[1]), say=lambda line: print(line, flush=True))
"""
# Imported once, as that takes longer than most of what the commands do; each in a process of its own.
_NOVA_SCHEMAS = """
import os
import sys
from nova.cmd import manage
settings, cell0 = sys.argv[1:]
for words in (
    ["api_db", "sync"],
    ["cell_v2", "map_cell0", "--database_connection", cell0],
    ["db", "sync"],
    ["cell_v2", "create_cell", "--name", "cell1"],
):
    child = os.fork()
    if child == 0:
        sys.argv = ["nova-manage", "--config-file", settings, *words]
        sys.exit(manage.main())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        print("nova-manage", *words[:2], "ended with", status, flush=True)
        sys.exit(1)
"""
_APPLICATIONS = {
    "placement": ("placement", "placement.wsgi.api:application"),
    "neutron": ("neutron", "neutron.wsgi.api:application"),
    "nova": ("nova-api", "nova.wsgi.osapi_compute:application"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeCloud:
    """A running cloud, and how tests reach it.

    ``namespace`` is where guests find their gateway and resolver, ``host_address``; servers for guests are started in
    it, on addresses that a test adds. The host reaches guests at their addresses in ``guest_subnet``.
    """

    folder: Path
    clouds_yaml: Path
    auth_url: str
    network: str
    flavors: Flavors
    host_address: str
    guest_subnet: str
    namespace: NetworkNamespace
    box: Box
    guests: GuestsNetwork
    seconds: Mapping[str, float]
    admin: str = ADMIN
    publisher: str = PUBLISHER
    sandbox: str = SANDBOX
    reader: str = READER

    def text(self) -> str:
        """For :func:`attached`, in another process."""
        return json.dumps(asdict(self), default=str, indent=1) + "\n"


def ready_file(folder: Path) -> Path:
    """Where a cloud that was brought up by command is told from."""
    return folder / "ready.json"


def attached(folder: Path) -> ComputeCloud:
    """The cloud that ``python -m testsuite.cloud up`` holds in ``folder``.

    Raises:
        CloudError: there is none.
    """
    try:
        known = json.loads(ready_file(folder).read_text())
    except FileNotFoundError:
        raise CloudError(f"no cloud is up in '{folder}'", hint="run 'python -m testsuite.cloud up DIR'") from None
    namespace = NetworkNamespace(**known["namespace"])
    return ComputeCloud(
        **{
            **known,
            "folder": Path(known["folder"]),
            "clouds_yaml": Path(known["clouds_yaml"]),
            "flavors": Flavors(**known["flavors"]),
            "namespace": namespace,
            "box": Box(**known["box"]),
            "guests": GuestsNetwork(**{**known["guests"], "namespace": namespace}),
        }
    )


@dataclass(slots=True)
class _Progress:
    """Lines with the time since the start, and how long each step took."""

    say: Say
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        ended = time.monotonic()
        self.seconds[name] = round(ended - began, 1)
        self.say(f"cloud: {ended - self.started:4.0f} s  {name} ({self.seconds[name]:.0f} s)")


@contextlib.contextmanager
def compute_cloud(folder: Path, *, say: Say) -> Iterator[ComputeCloud]:
    """A cloud for the length of the block; ``folder`` is emptied at the start, and holds its logs afterwards.

    Raises:
        CloudError: it did not come up.
        FactoryError: one is up in this folder.
    """
    progress = _Progress(say)
    with contextlib.ExitStack() as stack:
        installed = environment(say)
        # left after the box: what is still being brought up then fails at once
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=6))
        with progress.step("box and guests' network"):
            made = stack.enter_context(ground(folder.absolute()))
        start = _Start(made, progress=progress, pool=pool, python=installed)
        found = start.everything()
        say(f"cloud: ready after {time.monotonic() - progress.started:.0f} s, '{found.clouds_yaml}'")
        pool.shutdown()
        yield found


class _Start:
    """Bringing the services up, in the order in which they need each other; what does not need each other, at once."""

    def __init__(self, on: Ground, *, progress: _Progress, pool: ThreadPoolExecutor, python: Path) -> None:
        self._ground, self._progress, self._pool = on, progress, pool
        self._folder, self._box, self._guests = on.folder, on.box, on.guests
        self._python = python
        self._identity = Layout(folder=on.folder / "identity")

    def everything(self) -> ComputeCloud:
        with contextlib.ExitStack() as sockets:
            listeners = {name: sockets.enter_context(_listener()) for name in _APPLICATIONS}
            ports = {name: one.getsockname()[1] for name, one in listeners.items()}
            broker, peers, names = _free_ports(3, self._folder)
            # Keystone decides on its port when it is made, so what needs it is written after that
            identity = self._pool.submit(self._step, "Keystone and Glance", self._start_identity)
            database = self._pool.submit(self._step, "MariaDB", self._start_database)
            libvirt = self._pool.submit(self._step, "libvirt", lambda: start_libvirt(self._ground))
            settings = Settings(
                folder=self._folder,
                environment=self._python,
                identity_url=self._identity_url(identity),
                ports=Ports(**ports, broker=broker, broker_peers=peers, broker_names=names),
                device=self._guests.device,
            )
            for path, text in texts.configuration(settings).items():
                write_whole(path, text, mode=0o600)
            messages = self._pool.submit(self._step, "RabbitMQ", lambda: self._start_broker(settings))
            database.result()
            schemas = [
                self._pool.submit(self._step, f"{name} schema", lambda make=make: make(settings))
                for name, make in (("Nova", self._nova), ("Neutron", self._neutron), ("Placement", self._placement))
            ]
            identity.result()
            admin = connect(ADMIN, clouds_yaml=self._identity.clouds_yaml, direct=True)
            with self._progress.step("users and catalogue"):
                register_identities(settings, admin)
            for job in (*schemas, messages):
                job.result()
            with self._progress.step("APIs"):
                self._start_services(settings, listeners)
        clouds_yaml = self._folder / "clouds.yaml"
        known = identity_settings.Settings.parse(self._identity.settings.read_text())
        write_whole(clouds_yaml, identity_settings.clouds_yaml(known) + texts.tenant_entry(settings), mode=0o600)
        admin = connect(ADMIN, clouds_yaml=clouds_yaml, direct=True)
        with self._progress.step("compute host, network and flavors"):
            libvirt.result()
            self._start_compute(settings)
            register_network(admin, self._guests)
            register_flavors(admin, Flavors())
            await_compute(admin)
        return ComputeCloud(
            folder=self._folder,
            clouds_yaml=clouds_yaml,
            auth_url=settings.identity_url,
            network=SANDBOX,
            flavors=Flavors(),
            host_address=self._guests.gateway,
            guest_subnet=self._guests.subnet,
            namespace=self._guests.namespace,
            box=self._box,
            guests=self._guests,
            seconds=dict(self._progress.seconds),
        )

    def _step(self, name: str, do: Callable[[], None]) -> None:
        with self._progress.step(name):
            do()

    # -- what is not OpenStack, and what the factory brings ------------------------------------------------------------

    def _start_identity(self) -> None:
        self._box.run(
            [sys.executable, "-c", _IDENTITY, self._identity.folder], log=self._log("identity"), timeout_s=4 * _START_S
        )

    def _identity_url(self, job: Future[None]) -> str:
        """Known long before Keystone answers."""
        partial = self._identity.data.with_name(f".{self._identity.data.name}.part") / "settings.json"
        while True:
            for path in (partial, self._identity.settings):
                with contextlib.suppress(FileNotFoundError):
                    return identity_settings.Settings.parse(path.read_text()).identity_url
            if job.done():
                job.result()
            time.sleep(0.05)

    def _start_database(self) -> None:
        place, log = self._folder / "mysql", self._log("mariadb")
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={place}", "--skip-test-db"]
        self._box.run([*install, "--auth-root-authentication-method=normal"], log=log)
        options = [
            "--no-defaults",
            "--user=root",
            f"--datadir={place}",
            f"--socket={texts.SOCKET}",
            "--skip-networking",
        ]
        options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--sync-binlog=0"]
        options += ["--skip-log-bin", "--innodb-buffer-pool-size=64M", "--performance-schema=off"]
        pid = self._box.start(["mariadbd", *options, f"--pid-file={place}/pid"], log=log)
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={texts.SOCKET}"]
        self._box.await_start("MariaDB", pid, log, lambda: self._box.succeeds([*client, "--execute=select 1"]))
        made = "; ".join(f"create database {name}" for name in texts.DATABASES)
        self._box.run([*client, f"--execute={made}"])

    def _start_broker(self, settings: Settings) -> None:
        log = self._log("rabbitmq")
        program = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        pid = self._box.start([program], log=log, env=texts.broker_environment(settings))
        self._box.await_start("RabbitMQ", pid, log, lambda: _listens(settings.ports.broker))

    # -- schemas -------------------------------------------------------------------------------------------------------

    def _nova(self, settings: Settings) -> None:
        argv = [settings.bin / "python", "-c", _NOVA_SCHEMAS, settings.nova_conf, settings.database("nova_cell0")]
        env = {**settings.python_environment(), "OS_NOVA_DISABLE_EVENTLET_PATCHING": "true"}
        self._box.run(argv, log=self._log("nova-schema"), env=env)

    def _neutron(self, settings: Settings) -> None:
        files = ["--config-file", settings.neutron_conf, "--config-file", settings.ml2_conf]
        argv = [settings.bin / "neutron-db-manage", *files, "upgrade", "heads"]
        self._box.run(argv, log=self._log("neutron-schema"), env=settings.python_environment())

    def _placement(self, settings: Settings) -> None:
        argv = [settings.bin / "placement-manage", "--config-file", settings.placement_conf, "db", "sync"]
        self._box.run(argv, log=self._log("placement-schema"), env=settings.python_environment())

    # -- services ------------------------------------------------------------------------------------------------------

    def _start_services(self, settings: Settings, listeners: Mapping[str, socket.socket]) -> None:
        nova = ["--config-file", settings.nova_conf]
        neutron = ["--config-file", settings.neutron_conf, "--config-file", settings.ml2_conf]
        started = {}
        for name, (log, application) in _APPLICATIONS.items():
            started[name] = self._start_api(settings, application, listeners[name], log=self._log(log))
        for program, arguments in (("neutron-rpc-server", neutron), ("nova-conductor", nova), ("nova-scheduler", nova)):
            self._start_program(settings, [settings.bin / program, *arguments], name=program)
        for name, (log, _) in _APPLICATIONS.items():
            port = listeners[name].getsockname()[1]
            self._box.await_start(name, started[name], self._log(log), lambda port=port: _answers(port))

    def _start_api(self, settings: Settings, application: str, listener: socket.socket, *, log: Path) -> int:
        argv = [settings.bin / "python", "-m", "gunicorn", application, "--config", settings.gunicorn_conf]
        argv += ["--bind", f"fd://{listener.fileno()}", "--worker-class", "gthread", "--workers", "1"]
        argv += ["--threads", "8", "--timeout", "600", "--keep-alive", "30", "--no-control-socket"]
        argv += ["--worker-tmp-dir", settings.folder / "tmp"]
        return self._box.start(argv, log=log, env=settings.python_environment(), pass_fds=[listener.fileno()])

    def _start_compute(self, settings: Settings) -> None:
        files = ["--config-file", settings.neutron_conf, "--config-file", settings.ml2_conf]
        agent = [settings.bin / "python", settings.etc / "agent.py", *files]
        self._start_program(settings, agent, name="neutron-macvtap-agent")
        compute = [settings.bin / "nova-compute", "--config-file", settings.nova_conf]
        self._start_program(settings, compute, name="nova-compute")

    def _start_program(self, settings: Settings, argv: Sequence[str | Path], *, name: str) -> None:
        own = ["--log-file", self._log(name)]
        self._box.start([*argv, *own], log=self._folder / "log" / f"{name}.out", env=settings.python_environment())

    def _log(self, name: str) -> Path:
        return self._folder / "log" / f"{name}.log"


def _listener() -> socket.socket:
    """Bound by us and handed on, so that nobody else takes the port meanwhile."""
    listener = socket.socket()
    listener.bind((HOST, 0))
    listener.listen(128)
    return listener


def _free_ports(count: int, folder: Path) -> list[int]:
    """Ports that nobody listens on, below those that the kernel hands out to clients.

    They are taken a little later only, so two clouds that start at once look from different numbers on.
    """
    found = []
    first = _FIRST_PORT + int.from_bytes(hashlib.sha256(str(folder).encode()).digest()[:2]) % (_LAST_PORT - _FIRST_PORT)
    for port in (*range(first, _LAST_PORT), *range(_FIRST_PORT, first)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            found.append(port)
            if len(found) == count:
                return found
    raise CloudError(f"no {count} ports are free on {HOST}")


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=5).close()
    except OSError:
        return False
    return True


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < http.client.INTERNAL_SERVER_ERROR
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
