# SPDX-License-Identifier: Apache-2.0
"""The tests' cloud for people at a desk.

python -m testsuite.cloud install     the compute services' Python environment
python -m testsuite.cloud up DIR      bring a cloud up below DIR; it stays until 'down'
python -m testsuite.cloud down DIR    end it and everything in it
python -m testsuite.cloud env DIR     lines for eval: OS_CLIENT_CONFIG_FILE and OS_CLOUD (the tenant)
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

from factory.cloud.settings import HOST
from factory.errors import CloudError, FactoryError
from factory.system import daemon
from factory.system.files import remove, write_whole
from testsuite.cloud import attached, compute_cloud, environment, ready_file
from testsuite.cloud.ground import claim

_UP_S, _DOWN_S = 900.0, 60.0


def main(words: list[str]) -> int:
    """Exit status: 0, 2 for a usage error, 3 for what is broken."""
    verbs = {"up": up, "down": down, "env": env, "hold": hold}
    try:
        match words:
            case ["install"]:
                environment(say=_say)
            case [("up" | "down" | "env" | "hold") as verb, folder]:
                verbs[verb](Path(folder).absolute())
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except FactoryError as failed:
        print("\n".join(failed.lines()), file=sys.stderr)
        return failed.exit_code
    return 0


def up(folder: Path) -> None:
    """Start the holder, which stays, and repeat what it says until its cloud is ready."""
    log = folder / "holder.log"
    if not daemon.holders(_mark(folder)):
        claim(folder)
        remove(log)
        remove(ready_file(folder))
        argv = [sys.executable, "-m", "testsuite.cloud", "hold", folder]
        daemon.start(argv, mark=_mark(folder), log=log, env=os.environ)
    with log.open() as lines:
        _follow(lines, folder)


def _follow(lines: TextIO, folder: Path) -> None:
    deadline = time.monotonic() + _UP_S
    while not ready_file(folder).exists():
        print(lines.read(), end="", flush=True)
        if daemon.main_pid(_mark(folder)) is None or time.monotonic() > deadline:
            print(lines.read(), end="", flush=True)
            raise CloudError("the cloud did not come up", facts=(("logs", str(folder / "log")),))
        time.sleep(0.2)
    print(lines.read(), end="", flush=True)


def hold(folder: Path) -> None:
    """A cloud until SIGTERM; everything in it dies with this process, however that ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with compute_cloud(folder, say=_say) as cloud:
        write_whole(ready_file(folder), cloud.text(), mode=0o600)
        while True:
            signal.pause()


def down(folder: Path) -> None:
    """End the holder and with it the cloud."""
    daemon.end(_mark(folder), grace_s=_DOWN_S)
    remove(ready_file(folder))


def env(folder: Path) -> None:
    """What openstackclient needs."""
    cloud = attached(folder)
    print(f"export OS_CLIENT_CONFIG_FILE={shlex.quote(str(cloud.clouds_yaml))} OS_CLOUD={cloud.sandbox}")
    print(f'export no_proxy="{HOST}${{no_proxy:+,$no_proxy}}"')


def _mark(folder: Path) -> Path:
    return folder / "run" / "holder.mark"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
