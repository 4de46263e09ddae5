# SPDX-License-Identifier: Apache-2.0
"""Ports, passwords and configuration files of the compute services: values in, texts out."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from factory.cloud.settings import HOST, REGION

SERVICE_PROJECT = "service"
SANDBOX = "sandbox"
"""The tenant: its project, its user, its entry in clouds.yaml, and the network it is offered."""
OUTSIDE = "outside"
OUTSIDE_SUBNET = "203.0.113.0/24"
"""Where floating addresses come from: a network outside, of addresses for documentation (RFC 5737)."""
PHYSICAL = "guests"
DATABASES = ("placement", "neutron", "nova_api", "nova", "nova_cell0")
SOCKET = Path("/run/mysql.sock")
"""In the box's own /run: the path of a Unix socket may not be long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the services listen, on the host's loopback device."""

    placement: int
    neutron: int
    nova: int
    broker: int
    broker_peers: int
    broker_names: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the configuration files are made from."""

    folder: Path
    environment: Path
    identity_url: str
    ports: Ports
    device: str
    service: str = field(repr=False, default_factory=lambda: secrets.token_urlsafe(24))
    broker: str = field(repr=False, default_factory=lambda: secrets.token_urlsafe(24))
    sandbox: str = field(repr=False, default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    @property
    def bin(self) -> Path:
        return self.environment / "bin"

    @property
    def nova_conf(self) -> Path:
        return self.etc / "nova" / "nova.conf"

    @property
    def neutron_conf(self) -> Path:
        return self.etc / "neutron" / "neutron.conf"

    @property
    def ml2_conf(self) -> Path:
        return self.etc / "neutron" / "ml2_conf.ini"

    @property
    def placement_conf(self) -> Path:
        return self.etc / "placement" / "placement.conf"

    @property
    def gunicorn_conf(self) -> Path:
        return self.etc / "gunicorn.py"

    @property
    def urls(self) -> Mapping[str, str]:
        """Service type in the catalogue → address."""
        return {
            "placement": f"http://{HOST}:{self.ports.placement}",
            "network": f"http://{HOST}:{self.ports.neutron}",
            "compute": f"http://{HOST}:{self.ports.nova}/v2.1",
        }

    def log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"

    def database(self, name: str) -> str:
        return f"mysql+pymysql://root@localhost/{name}?unix_socket={SOCKET}&charset=utf8"

    def python_environment(self) -> dict[str, str]:
        """For every OpenStack program."""
        return {
            "OS_PLACEMENT_CONFIG_DIR": str(self.placement_conf.parent),
            "OS_NOVA_CONFIG_DIR": str(self.nova_conf.parent),
            "OS_NEUTRON_CONFIG_DIR": str(self.neutron_conf.parent),
            "OS_NEUTRON_CONFIG_FILES": f"{self.neutron_conf.name};{self.ml2_conf.name}",
            "PYTHONWARNINGS": "ignore",
            "TMPDIR": str(self.folder / "tmp"),
            "HOME": str(self.folder),
        }


def _auth(settings: Settings, user: str) -> str:
    return f"""\
auth_url = {settings.identity_url}
auth_type = password
username = {user}
password = {settings.service}
project_name = {SERVICE_PROJECT}
user_domain_name = Default
project_domain_name = Default
region_name = {REGION}
"""


def _broker(settings: Settings) -> str:
    return f"rabbit://factory:{settings.broker}@{HOST}:{settings.ports.broker}/"


def placement_conf(settings: Settings) -> str:
    """placement.conf."""
    return f"""\
[DEFAULT]
log_file = {settings.log("placement")}
[api]
auth_strategy = keystone
[placement_database]
connection = {settings.database("placement")}
[keystone_authtoken]
{_auth(settings, "placement")}"""


def neutron_conf(settings: Settings) -> str:
    """neutron.conf, for the server and the agent."""
    return f"""\
[DEFAULT]
log_file = {settings.log("neutron")}
state_path = {settings.folder}/neutron
core_plugin = ml2
service_plugins = router
transport_url = {_broker(settings)}
api_paste_config = {settings.environment}/etc/neutron/api-paste.ini
auth_strategy = keystone
notify_nova_on_port_status_changes = true
notify_nova_on_port_data_changes = true
dhcp_agent_notification = false
rpc_workers = 1
rpc_state_report_workers = 0
[agent]
root_helper = env
report_interval = 5
[database]
connection = {settings.database("neutron")}
[keystone_authtoken]
{_auth(settings, "neutron")}
[nova]
{_auth(settings, "nova")}
[placement]
{_auth(settings, "placement")}
[oslo_concurrency]
lock_path = {settings.folder}/locks
[privsep]
helper_command = {settings.bin}/privsep-helper --config-file {settings.neutron_conf}
"""


def ml2_conf(settings: Settings) -> str:
    """ml2_conf.ini: one flat network, macvtap; security groups are kept but nothing enforces them.

    Projects may make networks and routers of their own and take addresses; no agent carries them, so no server can be
    attached there.
    """
    return f"""\
[ml2]
type_drivers = flat, local
tenant_network_types = local
mechanism_drivers = macvtap
extension_drivers =
[ml2_type_flat]
flat_networks = {PHYSICAL}
[macvtap]
physical_interface_mappings = {PHYSICAL}:{settings.device}
[securitygroup]
firewall_driver = noop
enable_security_group = true
"""


def nova_conf(settings: Settings) -> str:
    """nova.conf, for all of Nova."""
    helper = f"helper_command = {settings.bin}/privsep-helper --config-file {settings.nova_conf}"
    return f"""\
[DEFAULT]
log_file = {settings.log("nova")}
state_path = {settings.folder}/nova
instances_path = {settings.folder}/instances
my_ip = {HOST}
transport_url = {_broker(settings)}
compute_driver = libvirt.LibvirtDriver
force_config_drive = true
config_drive_format = iso9660
mkisofs_cmd = genisoimage
vif_plugging_timeout = 60
vif_plugging_is_fatal = false
reserved_host_memory_mb = 512
cpu_allocation_ratio = 16
rpc_response_timeout = 120
[api]
auth_strategy = keystone
[api_database]
connection = {settings.database("nova_api")}
[database]
connection = {settings.database("nova")}
[keystone_authtoken]
{_auth(settings, "nova")}
[service_user]
send_service_user_token = true
{_auth(settings, "nova")}
[placement]
{_auth(settings, "placement")}
[glance]
{_auth(settings, "nova")}
[neutron]
{_auth(settings, "neutron")}
[cinder]
auth_type = none
[libvirt]
# /dev/kvm may exist and open and still not run an ordinary kernel: never guess.
virt_type = qemu
cpu_mode = custom
cpu_models = Nehalem
images_type = qcow2
[vnc]
enabled = false
[spice]
enabled = false
[scheduler]
discover_hosts_in_cells_interval = 2
workers = 1
[conductor]
workers = 1
[oslo_concurrency]
lock_path = {settings.folder}/locks
[oslo_messaging_notifications]
driver = noop
[workarounds]
disable_group_policy_check_upcall = true
[nova_sys_admin]
{helper}
[vif_plug_ovs_privileged]
{helper}
[os_brick_privileged]
{helper}
"""


QEMU_CONF = """\
# root in a box of its own; there is no systemd to ask for cgroups, and no virtlogd
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
remember_owner = 0
"""

LIBVIRTD_CONF = """\
listen_tls = 0
listen_tcp = 0
auth_unix_rw = "none"
unix_sock_group = "root"
"""

GUNICORN = """\
# The WSGI modules parse sys.argv, which here is gunicorn's own.
def post_fork(server, worker):
    import sys

    del sys.argv[1:]
"""


def agent(settings: Settings) -> str:
    """A launcher for Neutron's macvtap agent, with two of its faults mended."""
    return f"""\
# It forks after opening its privilege separation channel; the worker then waits for answers which only its parent
# receives, and never reports. We are root already: call the privileged functions in the agent's own process.
import contextlib
import sys
from pathlib import Path

from neutron import privileged

for context in vars(privileged).values():
    if hasattr(context, "set_client_mode"):
        context.set_client_mode(False)

from neutron.cmd.plugins import macvtap_neutron_agent
from neutron.plugins.ml2.drivers.macvtap.agent.macvtap_neutron_agent import MacvtapManager


# It takes every macvtap interface of the host for a guest of its own, and ends when one goes while it looks.
def get_all_devices(self):
    found = {{}}
    for lower in Path("/sys/class/net").glob("macvtap*/lower_{settings.device}"):
        with contextlib.suppress(OSError):
            found[(lower.parent / "address").read_text().strip()] = lower.parent.name
    self.mac_device_name_mappings = found
    return set(found)


MacvtapManager.get_all_devices = get_all_devices
sys.argv[0] = "neutron-macvtap-agent"
sys.exit(macvtap_neutron_agent.main())
"""


def broker_conf(settings: Settings) -> str:
    """rabbitmq.conf: one user, loopback only."""
    ports = settings.ports
    return f"""\
listeners.tcp.1 = {HOST}:{ports.broker}
default_user = factory
default_pass = {settings.broker}
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
"""


def broker_environment(settings: Settings) -> dict[str, str]:
    """For RabbitMQ: what its configuration file cannot say."""
    ports, home = settings.ports, settings.folder / "broker"
    loopback = "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none"
    return {
        "HOME": str(home),
        "RABBITMQ_NODENAME": "factory@localhost",
        "RABBITMQ_DIST_PORT": str(ports.broker_peers),
        "ERL_EPMD_ADDRESS": HOST,
        "ERL_EPMD_PORT": str(ports.broker_names),
        "RABBITMQ_CONFIG_FILE": str(settings.etc / "rabbitmq.conf"),
        "RABBITMQ_MNESIA_BASE": str(home),
        "RABBITMQ_LOG_BASE": str(settings.folder / "log"),
        "RABBITMQ_PID_FILE": str(home / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
    }


def configuration(settings: Settings) -> Mapping[Path, str]:
    """Every configuration file with its text."""
    return {
        settings.placement_conf: placement_conf(settings),
        settings.neutron_conf: neutron_conf(settings),
        settings.ml2_conf: ml2_conf(settings),
        settings.nova_conf: nova_conf(settings),
        settings.nova_conf.with_name("api-paste.ini"): (settings.environment / "etc/nova/api-paste.ini").read_text(),
        settings.gunicorn_conf: GUNICORN,
        settings.etc / "libvirtd.conf": LIBVIRTD_CONF,
        settings.etc / "agent.py": agent(settings),
        settings.etc / "rabbitmq.conf": broker_conf(settings),
    }


def tenant_entry(settings: Settings) -> str:
    """The sandbox's entry of clouds.yaml (JSON strings are YAML strings)."""
    auth = {
        "auth_url": settings.identity_url,
        "username": SANDBOX,
        "password": settings.sandbox,
        "project_name": SANDBOX,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }
    lines = [f"  {SANDBOX}:", "    auth_type: password", f"    region_name: {REGION}", "    auth:"]
    lines += [f"      {key}: {json.dumps(value)}" for key, value in auth.items()]
    return "\n".join([*lines, '    identity_api_version: "3"', '    image_api_version: "2"']) + "\n"
