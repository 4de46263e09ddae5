# SPDX-License-Identifier: Apache-2.0
"""What publishing and rotating cost on a real Glance, beside the bare tools, in one run; nothing here is asserted.

Wanted: an upload at 0.9 of ``curl -T`` to the same endpoint or more, in constant memory; a swap in five round trips;
the reconciliation of a line with a thousand hidden images in a handful of list pages.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the parts of the test suite that make images

from factory import cloud
from factory.model import Bundle, Release, Target
from factory.publish import publish
from factory.retention import sweep
from factory.rotate import apply, plan, reconcile, rotate
from factory.store.glance import GlanceStore, connect_glance
from factory.store.line import LEASE_S
from factory.system.clock import now
from testsuite.fakes.bundles import BUILT, make_bundle, make_qcow2

ROUNDS = 5
SIZE_MIB = int(os.environ.get("BENCHMARK_MIB", "256"))
HIDDEN_IMAGES = int(os.environ.get("BENCHMARK_IMAGES", "1000"))
Row = tuple[str, str, str]


def silent(_line: str) -> None:
    return


def peak_rss_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def record(store: GlanceStore, **more: object) -> str:
    image_id = str(uuid.uuid4())
    store.create(image_id, {"name": "benchmark", "visibility": "private", **more})
    return image_id


def ours_s(store: GlanceStore, file: Path) -> float:
    image_id = record(store)
    started = time.monotonic()
    store.upload(image_id, file)
    seconds = time.monotonic() - started
    store.delete(image_id)
    return seconds


def curl_s(store: GlanceStore, file: Path) -> float:
    image_id = record(store)
    token = store._connection.session.get_token()  # noqa: SLF001  (what curl sends has to be the same)
    argv = ["curl", "-fsS", "-T", file, "-H", f"X-Auth-Token: {token}", "-H", "Content-Type: application/octet-stream"]
    started = time.monotonic()
    subprocess.run([*argv, f"{store.address()}/images/{image_id}/file"], check=True, capture_output=True)
    seconds = time.monotonic() - started
    store.delete(image_id)
    return seconds


def growth_mib(access: cloud.CloudAccess, small: Path, large: Path) -> float:
    """How much more memory a large upload takes than a small one, each in the same fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return float(pool.apply(_growth, (str(access.clouds_yaml), access.publisher, small, large)))


def _growth(clouds_yaml: str, name: str, small: Path, large: Path) -> float:
    store = connect_glance(name, clouds_yaml=Path(clouds_yaml), direct=True, holder="benchmark")
    ours_s(store, small)
    before = peak_rss_mib()
    ours_s(store, large)
    return peak_rss_mib() - before


def uploads(access: cloud.CloudAccess, store: GlanceStore, scratch: Path) -> list[Row]:
    small, large = scratch / "small.qcow2", scratch / "large.qcow2"
    make_qcow2(small, data_bytes=1 << 20)
    shutil.copyfile(small, large)
    with large.open("ab") as file:
        for _ in range(SIZE_MIB):
            file.write(os.urandom(1 << 20))
    both: list[tuple[float, float]] = []
    for number in range(ROUNDS + 1):
        measures: list[Callable[[], float]] = [lambda: ours_s(store, large), lambda: curl_s(store, large)]
        order = measures if number % 2 else measures[::-1]
        taken = {measure: measure() for measure in order}
        both.append((taken[measures[0]], taken[measures[1]]))
    ours, curl = (statistics.median(pair[side] for pair in both[1:]) for side in (0, 1))
    ratio = statistics.median(pair[1] / pair[0] for pair in both[1:])
    return [
        (f"upload of {SIZE_MIB} MiB, median of {ROUNDS}", f"{ours:.2f} s", ""),
        ("the same with `curl -T`, in turns", f"{curl:.2f} s", ""),
        ("our speed / curl's, median", f"{ratio:.2f}", "0.9 or more"),
        (f"more memory for {SIZE_MIB} MiB than for 1 MiB", f"{growth_mib(access, small, large):.1f} MiB", "constant"),
    ]


def counted(access: cloud.CloudAccess, requests: list[str]) -> GlanceStore:
    def note(when: str, request: str) -> None:
        if when == "before":
            requests.append(request)

    return connect_glance(
        access.publisher, clouds_yaml=access.clouds_yaml, direct=True, holder="benchmark", observer=note
    )


def swap(access: cloud.CloudAccess, bundles: list[Bundle]) -> list[Row]:
    requests: list[str] = []
    store = counted(access, requests)
    for bundle in bundles[:2]:
        rotate(published(bundle, store), store=store, now=now(), say=silent)
    release = published(bundles[2], store)
    line = bundles[0].artifact.recipe.description.line
    planned = plan(store.list_line(line), release.image_id, line=line)
    requests.clear()
    started = time.monotonic()
    rotation = apply(planned, store, target=Target(), now=now(), say=silent)
    seconds = time.monotonic() - started
    patches = sum(request.startswith("PATCH") for request in requests)
    return [
        ("requests of a swap", f"{patches} PATCH, after {len(requests) - patches} GET that look", "five that write"),
        ("a swap", f"{seconds:.2f} s", ""),
        ("of it lists miss the latest for", f"{rotation.gap_s:.3f} s", "one round trip"),
    ]


def published(bundle: Bundle, store: GlanceStore) -> Release:
    return publish(bundle, store=store, target=Target(), now=now(), say=silent)


def archive(access: cloud.CloudAccess, line: str) -> list[Row]:
    requests: list[str] = []
    store = counted(access, requests)
    for number in range(HIDDEN_IMAGES):
        name = f"{line}_archived_{number:04d}"
        properties = {"imgfactory_line": line, "imgfactory_role": "archive", "imgfactory_dated_name": name}
        record(store, **{**properties, "name": name, "os_hidden": True, "imgfactory_keep_until": "forever"})
    requests.clear()
    started = time.monotonic()
    reconcile(line, store=store, now=now(), say=silent, lease_s=LEASE_S)
    seconds, pages = time.monotonic() - started, len(requests)
    sweep(line, store=store, now=now(), say=silent)
    return [
        (
            f"reconcile of a line with {HIDDEN_IMAGES:,} hidden images",
            f"{pages} requests, {seconds:.2f} s",
            "a handful",
        ),
        ("the deletion's look at it after that", f"{len(requests) - pages} requests", ""),
    ]


def measure() -> list[Row]:
    """Rows of what, measured, wanted; on a cloud of its own, which is gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="factory-bench-"))
    try:
        access = cloud.up(scratch / "cloud", say=silent)
        store = connect_glance(access.publisher, clouds_yaml=access.clouds_yaml, direct=True, holder="benchmark")
        bundles = [
            make_bundle(scratch / str(number), line="Benchmark", built_at=BUILT + timedelta(days=number))
            for number in range(3)
        ]
        return [*uploads(access, store, scratch), *swap(access, bundles), *archive(access, "Benchmark")]
    finally:
        cloud.down(scratch / "cloud")
        shutil.rmtree(scratch)


def main() -> None:
    rows = measure()
    print("| what | measured | wanted |\n|---|---|---|")
    print("".join(f"| {a} | {b} | {c} |\n" for a, b, c in rows))


if __name__ == "__main__":
    main()
