# SPDX-License-Identifier: Apache-2.0
"""The region server as it is deployed: the unit's very command line, Apache's very sample, hostile peers, and load."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from defusedxml import ElementTree

from factory.errors import CommandFailed
from factory.region.certificates import issue
from factory.system.clock import now
from factory.system.namespaces import NetworkNamespace, network_namespace
from factory.system.run import run, running

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(240)]

PROJECT = Path(__file__).parents[2]
UNIT = PROJECT / "packages/systemd/factory-region-server.service"
APACHE = PROJECT / "packages/apache"
IN_CI = os.environ.get("CI") == "true"
LOAD_S = 60 if IN_CI else int(os.environ.get("FACTORY_LOAD_S", "60"))
WARM_UP_S = 8
HOST, HOST6, NORTH, SOUTH, STRANGER, NORTH6 = (
    "192.0.2.10",
    "2001:db8::10",
    "198.51.100.7",
    "198.51.100.200",
    "203.0.113.1",
    "2001:db8:a::7",
)
PRINT = ":".join(["AB"] * 20)
DATA = f"""\
[North]
public-ips = 198.51.100.0/24
public-ipsv6 = 2001:db8:a::/48
smt-server-ip = 192.0.2.20, 192.0.2.21
smt-server-ipv6 = 2001:db8::20,2001:db8::21
smt-server-name = a.test.invalid,b.test.invalid
smt-registry-name = registry.test.invalid
smt-fingerprint = {PRINT}

[south]
public-ips = 198.51.100.128/25,192.0.2.10/32
smt-server-ip = 192.0.2.30
smt-server-name = c.test.invalid
smt-registry-name = registry.test.invalid
smt-fingerprint = {PRINT}
"""
PLACE = """
set -e
mount -t tmpfs tmpfs /srv
mkdir -p /srv/image-factory /srv/.upper /srv/.work
ln -s "$1" /srv/image-factory/packages
if [ -n "$4" ]; then
    /usr/bin/python3 -m venv --without-pip /srv/image-factory/.venv
    site=$(echo /srv/image-factory/.venv/lib/python3*/site-packages)
    for folder in $4; do echo "$folder"; done > "$site/factory.pth"
else
    ln -s "$2" /srv/image-factory/.venv
fi
mount -t overlay overlay -o lowerdir=/etc,upperdir=/srv/.upper,workdir=/srv/.work /etc
mkdir /etc/regionService
mount --bind "$3" /etc/regionService
mkdir -p /srv/.log && mount --bind /srv/.log /var/log
mkdir /var/log/regionService && mount --bind "$3/log" /var/log/regionService
shift 4
exec "$@"
"""
"""Lays the paths that unit and vhost name over this host's, seen by the started program alone."""

ASK = """
import http.client, json, ssl, sys
source, host, pem, *targets = sys.argv[1:]
context = ssl.create_default_context(cafile=pem)
connection = http.client.HTTPSConnection(host, 443, timeout=20, context=context, source_address=(source, 0))
answers = []
for target in targets:
    connection.request("GET", target)
    reply = connection.getresponse()
    answers.append([reply.status, reply.read().decode(), reply.headers.get("Content-Type", "")])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Deployed:
    """A region server in a namespace, its files, and its first process."""

    namespace: NetworkNamespace
    folder: Path
    pid: int

    @property
    def data(self) -> Path:
        return self.folder / "regionData.cfg"

    @property
    def log(self) -> Path:
        return self.folder / "log/regionInfo.log"

    def ask(self, source: str, *targets: str) -> list[tuple[int, str, str]]:
        host = HOST6 if ":" in source else HOST
        argv = [sys.executable, "-c", ASK, source, host, self.folder / "tls/region.pem", *targets]
        return [tuple(one) for one in json.loads(run(self.namespace.inside(argv), timeout_s=60).stdout)]

    def region(self, source: str, hint: str = "") -> str:
        ((status, body, _),) = self.ask(source, "/regionInfo" + (f"?regionHint={hint}" if hint else ""))
        return "" if status == 404 else ElementTree.fromstring(body)[0].get("region")

    def rss_kib(self) -> int:
        """Memory of all workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        found = [Path(f"/proc/{child}/status").read_text() for child in children]
        return sum(int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) for status in found)


def needs(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None and not IN_CI:
        pytest.skip(f"{program} is not installed")
    assert found, f"{program} is not installed"
    return found


@pytest.fixture(scope="module")
def namespace() -> Iterator[NetworkNamespace]:
    with network_namespace((HOST, HOST6, NORTH, SOUTH, STRANGER, NORTH6)) as made:
        yield made


def prepare(folder: Path) -> Path:
    """/etc/regionService as an administrator makes it."""
    (folder / "log").mkdir(parents=True)
    (folder / "log").chmod(0o777)
    (folder / "tls").mkdir()
    issue("region.test.invalid", now=now(), days=30, names=["region.test.invalid"], addresses=[HOST, HOST6]).write(
        folder / "tls", "region"
    )
    (folder / "regionData.cfg").write_text(DATA)
    (folder / "regionInfo.cfg").write_text(
        "[server]\nlogFile = /var/log/regionService/regionInfo.log\nregionConfig = /etc/regionService/regionData.cfg\n"
    )
    return folder


def unit_option(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def started(argv: Sequence[str], folder: Path, log: Path, *, env: dict[str, str], folders: str = ""):
    script = ["unshare", "--mount", "/bin/sh", "-c", PLACE, "place"]
    return running([*script, PROJECT / "packages", sys.prefix, folder, folders, *argv], log=log, env=env, grace_s=10)


def credentials(folder: Path) -> Path:
    """What systemd would copy for the unit."""
    copies = folder / "credentials"
    copies.mkdir(mode=0o700)
    for line in unit_option("LoadCredential"):
        name, _, source = line.partition(":")
        shutil.copy(folder / Path(source).relative_to("/etc/regionService"), copies / name)
    return copies


@contextlib.contextmanager
def unit_started(namespace: NetworkNamespace, folder: Path) -> Iterator[Deployed]:
    """What systemd would start, and the word it waits for."""
    prepare(folder)
    copies = credentials(folder)
    (line,) = unit_option("ExecStart")
    argv = shlex.split(line.replace("${CREDENTIALS_DIRECTORY}", str(copies)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(folder / "notify"))
        notify.settimeout(60)
        environment = {"NOTIFY_SOCKET": str(folder / "notify")}
        log = folder / "server.log"
        with started(namespace.inside(argv), folder, log, env=environment) as process:
            try:
                assert b"READY=1" in notify.recv(4096)
            except TimeoutError:
                pytest.fail(log.read_text())
            yield Deployed(namespace=namespace, folder=folder, pid=process.pid)


@pytest.fixture(scope="module")
def deployed(namespace: NetworkNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with unit_started(namespace, tmp_path_factory.mktemp("unit") / "regionService") as server:
        yield server


def test_the_units_command_line_answers_over_tls(deployed: Deployed) -> None:
    (found,) = deployed.ask(STRANGER, "/regionInfo?regionHint=SOUTH")
    body = (
        "<regionSMTdata>\n"
        '<smtInfo SMTserverIP="192.0.2.30" SMTserverName="c.test.invalid" SMTregistryName="registry.test.invalid" '
        f'fingerprint="{PRINT}" region="south"/>\n'
        "</regionSMTdata>"
    )
    assert found == (200, body, "text/html; charset=utf-8")
    assert [found[:2] for found in deployed.ask(STRANGER, "/regionInfo")] == [(404, "Not found")]
    assert json.loads(deployed.ask(STRANGER, "/health")[0][1]) == {"state": "online", "regions": 2, "networks": 4}


@pytest.mark.parametrize(
    ("source", "hint", "region"),
    [(NORTH, "", "north"), (SOUTH, "", "south"), (SOUTH, "north", "north"), (NORTH6, "", "north"), (STRANGER, "", "")],
)
def test_one_socket_for_both_families_still_finds_ipv4_networks(
    deployed: Deployed, source: str, hint: str, region: str
) -> None:
    """The unit listens on [::], so IPv4 peers come as ::ffff:a.b.c.d."""
    assert deployed.region(source, hint) == region


def test_the_access_log_may_be_moved_away(deployed: Deployed) -> None:
    deployed.region(NORTH, "before")
    moved = deployed.log.with_name("regionInfo.log.1")
    deployed.log.rename(moved)
    deployed.region(NORTH, "after")
    assert 'regionHint=before" 200' in moved.read_text()
    assert "after" not in moved.read_text()
    line = r'^[0-9T:-]{19}Z ::ffff:198\.51\.100\.7 "GET /regionInfo\?regionHint=after" 200 \d+ north "-"$'
    assert re.search(line, deployed.log.read_text(), re.MULTILINE)


def wait_for(text: str, log: Path, *, timeout_s: float = 30) -> None:
    until = time.monotonic() + timeout_s
    while text not in log.read_text():
        assert time.monotonic() < until, f"{text!r} never came: {log.read_text()[-2000:]}"
        time.sleep(0.1)


def test_a_reload_takes_good_data_over_and_refuses_bad(tmp_path: Path) -> None:
    with unit_started_elsewhere(tmp_path / "regionService") as server:
        assert server.region(STRANGER) == ""
        server.data.write_text(DATA.replace("198.51.100.0/24", "203.0.113.0/24"))
        os.kill(server.pid, signal.SIGHUP)
        until = time.monotonic() + 20
        while server.region(STRANGER) != "north":
            assert time.monotonic() < until
        server.data.write_text(DATA.replace("198.51.100.0/24", "203.0.113.1/24"))
        os.kill(server.pid, signal.SIGHUP)
        wait_for("not taken over", server.log)
        wait_for("not taken over:   /etc/regionService/regionData.cfg:2 North.public-ips: '203.0.113.1/24'", server.log)
        assert server.region(STRANGER) == "north"


@contextlib.contextmanager
def unit_started_elsewhere(folder: Path) -> Iterator[Deployed]:
    with network_namespace((HOST, HOST6, NORTH, SOUTH, STRANGER, NORTH6)) as other, unit_started(other, folder) as made:
        yield made


HOSTILE = """
import socket, ssl, sys
host, pem = sys.argv[1:3]
context = ssl.create_default_context(cafile=pem)
def send(data, wrap=True, read=True):
    with socket.create_connection((host, 443), timeout=25) as plain:
        try:
            with (context.wrap_socket(plain, server_hostname=host) if wrap else plain) as line:
                try:
                    line.sendall(data)
                except OSError:
                    pass  # it may refuse before it has heard all
                return line.recv(4096)[:40].split(b"\\r\\n")[0].decode("latin-1") if read else ""
        except OSError as broken:
            return type(broken).__name__
good = b" HTTP/1.1\\r\\nHost: x\\r\\n"
for name, data in {
    "long hint": b"GET /regionInfo?regionHint=" + b"a" * 3500 + good + b"\\r\\n",
    "longer hint": b"GET /regionInfo?regionHint=" + b"a" * 200000 + good + b"\\r\\n",
    "huge header": b"GET /regionInfo" + good + b"X: " + b"a" * 200000 + b"\\r\\n\\r\\n",
    "many headers": b"GET /regionInfo" + good + b"".join(b"X%d: 1\\r\\n" % i for i in range(5000)) + b"\\r\\n",
    "odd method": b"FROBNICATE /regionInfo" + good + b"\\r\\n",
    "bad method": b"G\\x00T /regionInfo" + good + b"\\r\\n",
    "bad encoding": b"GET /regionInfo?regionHint=%ff%fe%00\\xff\\xfe" + good + b"\\r\\n",
    "bad path": b"GET /%ff%c0%af..%2f..%2fetc/passwd" + good + b"\\r\\n",
    "traversal": b"GET /regionInfo/../../etc/passwd" + good + b"\\r\\n",
    "log line": b"GET /regionInfo?%0aforged" + good + b"User-Agent: a\\"b\\x1b[31m\\r\\n\\r\\n",
    "post": b"POST /regionInfo" + good + b"Content-Length: 5\\r\\n\\r\\nhello",
    "endless body": b"POST /regionInfo" + good + b"Content-Length: 99999999999\\r\\n\\r\\n" + b"a" * 100000,
    "two lengths": b"POST /regionInfo" + good + b"Content-Length: 5\\r\\nContent-Length: 6\\r\\n\\r\\nhello",
    "smuggled": b"POST /x" + good + b"Content-Length: 5\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
    "bad version": b"GET /regionInfo HTTP/9.9\\r\\n\\r\\n",
    "no http": b"\\x16\\x03\\x01" * 50 + b"\\r\\n\\r\\n",
    "forwarded": b"GET /regionInfo" + good + b"X-Forwarded-For: 198.51.100.7\\r\\n\\r\\n",
    "script name": b"GET /regionInfo" + good + b"SCRIPT_NAME: /regionInfo\\r\\nScript-Name: /x\\r\\n\\r\\n",
}.items():
    print(f"{name}|{send(data)}", flush=True)
print(f"plain|{send(b'GET / HTTP/1.0' + bytes([13, 10, 13, 10]), wrap=False)}")
idle = [socket.create_connection((host, 443), timeout=25) for _ in range(300)]
print(f"beside idle|{send(b'GET /health' + good + bytes([13, 10]))}", flush=True)
"""
CUT = "SSLEOFError|SSLZeroReturnError|ConnectionResetError|BrokenPipeError"
"""What is left of a refusal to who still talks when the connection is closed."""
HOSTILE_ANSWERS = {
    "long hint": "404",
    "longer hint": f"414|{CUT}",
    "huge header": f"400|431|{CUT}",
    "many headers": f"400|431|{CUT}",
    "odd method": "405",
    "bad method": "400",
    "bad encoding": "400|404",
    "bad path": "404",
    "traversal": "404",
    "log line": "404|400",
    "post": "405",
    "endless body": "405",
    "two lengths": "400",
    "smuggled": "400|404",
    "bad version": "400|505",
    "no http": "400",
    "forwarded": "404",
    "script name": "404|400",
    "plain": "",
    "beside idle": "200",
}


def test_hostile_requests_are_refused_and_change_nothing(deployed: Deployed) -> None:
    argv = [sys.executable, "-c", HOSTILE, HOST6, deployed.folder / "tls/region.pem"]
    said = run(deployed.namespace.inside(argv), timeout_s=200).stdout
    answers = dict(line.split("|", 1) for line in said.splitlines())
    assert set(answers) == set(HOSTILE_ANSWERS)
    wrong = {
        name: answer
        for name, answer in answers.items()
        if not re.search(HOSTILE_ANSWERS[name], answer) or re.search(r" 5\d\d ", answer.replace(" 505 ", " "))
    }
    assert wrong == {}
    assert deployed.region(NORTH) == "north"
    shown = deployed.log.read_text()
    assert all(char.isprintable() for char in shown.replace("\n", ""))
    assert "\nforged" not in shown
    assert "Traceback" not in (deployed.folder / "server.log").read_text()


def test_under_load_there_is_no_error_and_memory_is_flat(deployed: Deployed) -> None:
    """wrk on all cores over TLS, half of it by hint and half by address."""
    wrk = needs("wrk")
    cores = os.cpu_count() or 1
    script = deployed.folder / "mixed.lua"
    script.write_text(
        "local n = 0\n"
        "request = function()\n"
        "  n = n + 1\n"
        "  local hints = {'?regionHint=north', '', '?regionHint=nowhere' .. n, '?regionHint=SOUTH'}\n"
        "  return wrk.format('GET', '/regionInfo' .. hints[n % 4 + 1])\n"
        "end\n"
    )
    argv = [wrk, "-t", str(cores), "-c", str(32 * cores), "-d", f"{LOAD_S}s", "-s", script, f"https://{HOST}/"]
    said = deployed.folder / "wrk.log"
    with running(deployed.namespace.inside(argv), log=said) as process:
        time.sleep(min(WARM_UP_S, LOAD_S / 2))
        warm = deployed.rss_kib()
        process.wait(LOAD_S + 60)
        end = deployed.rss_kib()
    text = said.read_text()
    print(f"{text}\nworkers: {warm} KiB warm, {end} KiB at the end")
    requests = int(re.search(r"(\d+) requests in", text).group(1))
    assert requests > 100 * LOAD_S
    assert "Socket errors" not in text
    assert "Non-2xx" not in text
    assert end - warm < 0.05 * warm, "memory grows under load"
    assert deployed.log.read_text().count(" north ") + deployed.log.read_text().count(" south ") >= requests


APACHE_BASE = """\
ServerRoot /srv
PidFile /srv/apache.pid
ErrorLog /etc/regionService/log/apache-error.log
Mutex file:/srv default
User www-data
Group www-data
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
LoadModule reqtimeout_module /usr/lib/apache2/modules/mod_reqtimeout.so
LoadModule wsgi_module /usr/lib/apache2/modules/mod_wsgi.so
WSGISocketPrefix /srv/wsgi
Include /srv/image-factory/packages/apache/region-server.conf
"""
"""What Debian's apache2.conf would bring."""
SERVER_PACKAGES = frozenset(
    {"blinker", "cffi", "click", "cryptography", "defusedxml", "flask", "gunicorn"}
) | frozenset({"itsdangerous", "jinja2", "markupsafe", "packaging", "py-radix", "pycparser", "werkzeug"})
"""The lock's packages that the region server needs."""


@contextlib.contextmanager
def apache_started(namespace: NetworkNamespace, folder: Path, packages: Path) -> Iterator[Deployed]:
    apache = needs("apache2")
    prepare(folder)
    (folder / "httpd.conf").write_text(APACHE_BASE)
    folders = f"{PROJECT} {packages}"
    users = 'grep -q "^regionsrv:" /etc/passwd || echo "regionsrv:x:64999:64999::/:/bin/false" >> /etc/passwd; '
    users += 'grep -q "^regionsrv:" /etc/group || echo "regionsrv:x:64999:" >> /etc/group; exec "$@"'
    argv = ["/bin/sh", "-c", users, "sh", apache, "-f", "/etc/regionService/httpd.conf", "-DFOREGROUND"]
    folder.parent.chmod(0o755)
    with started(namespace.inside(argv), folder, folder / "apache.log", env={}, folders=folders) as process:
        yield Deployed(namespace=namespace, folder=folder, pid=process.pid)


def modwsgi_python() -> str:
    """The one version of Python that this host's mod_wsgi runs."""
    found = list(Path("/usr/lib/apache2/modules").glob("mod_wsgi.so-*"))
    if not found and not IN_CI:
        pytest.skip("mod_wsgi is not installed")
    assert found, "mod_wsgi is not installed"
    return found[0].name.removeprefix("mod_wsgi.so-")


def packages_for(version: str, folder: Path) -> Path:
    """What the region server imports, for this Python: the tests' own packages, else those of the lock, installed."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(next(path for path in sys.path if path.endswith("site-packages")))
    locked = re.split(r"\n(?=[a-z0-9])", (PROJECT / "locks/requirements.txt").read_text())
    wanted = [entry for entry in locked if re.split("[ =;]", entry, maxsplit=1)[0] in SERVER_PACKAGES]
    venv = folder / "regionService/venv"  # where the server may read, which the tests' own folder is not
    run([f"/usr/bin/python{version}", "-m", "venv", venv], timeout_s=120)
    (venv / "requirements.txt").write_text("\n".join(wanted) + "\n")
    pip = [venv / "bin/pip", "install", "-qq", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    run([*pip, "-r", venv / "requirements.txt"], timeout_s=200, env=os.environ)
    return Path(f"/etc/regionService/venv/lib/python{version}/site-packages")


def test_apaches_sample_answers_the_same(tmp_path: Path) -> None:
    needs("apache2")
    packages = packages_for(modwsgi_python(), tmp_path)
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(network_namespace((HOST, HOST6, NORTH, SOUTH, STRANGER, NORTH6)))
        server = stack.enter_context(apache_started(namespace, tmp_path / "regionService", packages))
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(CommandFailed):
                if server.ask(NORTH, "/health")[0][0] == http.client.OK:
                    break
            if time.monotonic() > until:
                pytest.fail((server.folder / "log/apache-error.log").read_text()[:4000])
            time.sleep(0.3)
        assert [server.region(one) for one in (NORTH, SOUTH, NORTH6, STRANGER)] == ["north", "south", "north", ""]
        assert server.region(STRANGER, "South") == "south"
        assert [found[0] for found in server.ask(NORTH, "/", "/regionInfo/", "/x")] == [404, 404, 404]
        assert 'regionHint=South" 200' in server.log.read_text()


def test_the_unit_is_accepted_and_tight(tmp_path: Path) -> None:
    analyze = needs("systemd-analyze")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/srv/image-factory/.venv/bin/factory", "/bin/true"))
    done = run([analyze, "verify", "--man=no", copy], check=False, timeout_s=60)
    assert (done.returncode, done.stderr) == (0, "")
    run([analyze, "security", "--offline=yes", "--threshold=20", copy], timeout_s=60)
