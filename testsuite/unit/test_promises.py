# SPDX-License-Identifier: Apache-2.0
"""Promises of published images: a table of what is there, and what is said about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from factory.model import StoredImage
from factory.promises import NIGHT, SOON, Given, Promise, watch

NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)
LINE = "Standard_Debian_13"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def image(
    generation: int = 3,
    *,
    role: str = "latest",
    age: timedelta = HOUR,
    status: str = "active",
    tested: bool = True,
    **said: str,
) -> StoredImage:
    built = NOW - age
    dated = f"{LINE}_{built:%Y%m%d}"
    properties = {
        "imgfactory_line": LINE,
        "imgfactory_role": role,
        "imgfactory_generation": str(generation),
        "imgfactory_built_at": built.isoformat(),
        "imgfactory_dated_name": dated,
        **({"imgfactory_tested": "pass:1"} if tested else {}),
        **said,
    }
    return StoredImage(
        id=f"id-{generation}",
        name=f"{LINE}_{role}" if role in {"latest", "prev"} else dated,
        status=status,
        hidden=role not in {"latest", "prev"},
        visibility="public",
        protected=True,
        owner="p",
        size_bytes=1,
        virtual_size_bytes=1,
        hash_algo="sha512",
        hash_value="0",
        created_at=NOW,
        updated_at=NOW,
        properties=properties,
    )


def told(found: tuple[Promise, ...]) -> list[str]:
    return [f"{one.promise} {one.state.value}" for one in found]


@pytest.mark.parametrize(
    ("frequency", "age", "ahead", "expected"),
    [
        ("daily", 24 * HOUR, SOON, ""),
        ("daily", 29 * HOUR, SOON, ""),
        ("daily", 31 * HOUR, SOON, "warning"),
        ("daily", 37 * HOUR, SOON, "breached"),
        ("daily", 1 * HOUR, NIGHT, ""),  # a night that published
        ("daily", 25 * HOUR, NIGHT, "warning"),  # a night that did not
        ("weekly", 7 * DAY, SOON, ""),
        ("weekly", 8 * DAY, SOON, "breached"),
        ("monthly", 31 * DAY + HOUR, SOON, ""),  # from the first of a long month to the first of the next
        ("monthly", 31 * DAY + 7 * HOUR, SOON, "warning"),
        ("monthly", 32 * DAY, SOON, "breached"),
        ("monthly", 30 * DAY, NIGHT, ""),
        ("monthly", 31 * DAY, NIGHT, "warning"),
        ("quarterly", 91 * DAY, SOON, ""),
        ("quarterly", 93 * DAY, SOON, "breached"),
        ("yearly", 367 * DAY, SOON, "breached"),
        ("critical_bug", 999 * DAY, NIGHT, ""),
        ("never", 999 * DAY, NIGHT, ""),
        ("", 999 * DAY, NIGHT, ""),
        ("fortnightly", 999 * DAY, NIGHT, ""),
    ],
)
def test_replace_frequency(frequency: str, age: timedelta, ahead: timedelta, expected: str) -> None:
    found = watch(LINE, [image(age=age, replace_frequency=frequency)], now=NOW, ahead=ahead)
    assert told(found) == ([f"replace_frequency {expected}"] if expected else [])


def test_only_the_latest_has_to_be_replaced() -> None:
    images = [
        image(3, replace_frequency="daily"),
        image(2, role="prev", age=40 * DAY, replace_frequency="daily"),
        image(1, role="archive", age=400 * DAY, replace_frequency="daily"),
        image(4, role="candidate", age=400 * DAY, replace_frequency="daily"),
    ]
    assert watch(LINE, images, now=NOW) == ()


@pytest.mark.parametrize(
    ("hours", "waits", "ahead", "expected"),
    [
        ("48", None, NIGHT, ""),
        ("48", 10 * HOUR, SOON, ""),
        ("48", 43 * HOUR, SOON, "warning"),
        ("48", 30 * HOUR, NIGHT, "warning"),
        ("48", 49 * HOUR, SOON, "breached"),
        ("4", HOUR, SOON, "warning"),
        ("0", 999 * HOUR, NIGHT, ""),  # best effort
        ("", 999 * HOUR, NIGHT, ""),
        ("soon", 999 * HOUR, NIGHT, ""),
    ],
)
def test_hotfix_hours(hours: str, waits: timedelta | None, ahead: timedelta, expected: str) -> None:
    since = None if waits is None else NOW - waits
    said = {"hotfix_hours": hours} if hours else {}
    found = watch(LINE, [image(**said)], now=NOW, ahead=ahead, unpublished_since=since)
    assert told(found) == ([f"hotfix_hours {expected}"] if expected else [])


@pytest.mark.parametrize(
    ("until", "role", "expected"),
    [
        ("none", "latest", ""),
        ("notice", "latest", ""),
        ("2027-06-01", "latest", ""),
        ("2026-12-20", "latest", "warning"),
        ("2026-11-21", "prev", "warning"),  # its last day
        ("2026-11-20", "latest", "breached"),
        ("2026-11-20", "prev", "breached"),
        ("2026-11-20", "archive", ""),  # nobody is offered it any more
    ],
)
def test_provided_until(until: str, role: str, expected: str) -> None:
    others = [] if role == "latest" else [image(9)]
    found = watch(LINE, [*others, image(role=role, provided_until=until)], now=NOW)
    assert told(found) == ([f"provided_until {expected}"] if expected else [])


@pytest.mark.parametrize(
    ("valid", "generation", "expected"),
    [
        ("2026-11-21", 1, True),
        ("2026-11-20", 1, False),
        ("last-3", 2, True),  # generations 3 and 4 are newer
        ("last-2", 2, False),
        ("forever", 1, True),
        ("none", 3, False),
        ("notice", 3, False),
        ("", 3, False),
    ],
)
def test_promised_ids_that_are_gone(valid: str, generation: int, expected: bool) -> None:  # noqa: FBT001
    images = [image(4), image(3, role="prev")]
    gone = Given(image_id=f"id-{generation}-gone", name="D", uuid_validity=valid, generation=generation)
    still = Given(image_id="id-4", name="E", uuid_validity="forever", generation=4)
    found = watch(LINE, images, now=NOW, given=[gone, still])
    assert told(found) == (["uuid_validity breached"] if expected else [])
    assert all(one.image_id == gone.image_id and "gone" in one.says for one in found)


@pytest.mark.parametrize(
    ("said", "status", "expected"),
    [
        ({"uuid_validity": "2027-01-01"}, "deactivated", ["uuid_validity breached"]),
        ({"uuid_validity": "2027-01-01", "imgfactory_blocked": "wanted"}, "deactivated", []),
        ({"uuid_validity": "2026-01-01"}, "deactivated", []),
        ({"uuid_validity": "2027-01-01", "imgfactory_keep_until": "2026-12-31"}, "active", ["uuid_validity warning"]),
        ({"uuid_validity": "2027-01-01", "imgfactory_keep_until": "2027-01-02"}, "active", []),
        ({"uuid_validity": "2027-01-01", "imgfactory_keep_until": "last-2"}, "active", ["uuid_validity warning"]),
        ({"uuid_validity": "last-3", "imgfactory_keep_until": "last-2"}, "active", ["uuid_validity warning"]),
        ({"uuid_validity": "last-3", "imgfactory_keep_until": "last-3"}, "active", []),
        ({"uuid_validity": "forever", "imgfactory_keep_until": "2099-01-01"}, "active", ["uuid_validity warning"]),
        ({"uuid_validity": "2027-01-01", "imgfactory_keep_until": "forever"}, "active", []),
    ],
)
def test_ids_that_cannot_be_used_or_would_go_too_early(said: dict[str, str], status: str, expected: list[str]) -> None:
    found = watch(LINE, [image(4), image(3, role="archive", status=status, **said)], now=NOW)
    assert told(found) == expected


@pytest.mark.parametrize("broken", ["no latest", "untested", "hidden name"])
def test_a_line_without_a_latest_is_a_breach(broken: str) -> None:
    images = {
        "no latest": [image(2, role="prev")],
        "untested": [image(3, tested=False)],
        "hidden name": [image(3, role="archive")],
    }[broken]
    (found,) = watch(LINE, images, now=NOW)
    assert "no healthy latest" in found.says


def test_a_line_that_never_published_promised_nothing() -> None:
    assert watch(LINE, [], now=NOW) == ()
    assert watch(LINE, [image(1, role="candidate")], now=NOW) == ()


def test_the_gravest_is_told_first_with_name_id_and_time() -> None:
    said = {"replace_frequency": "daily", "provided_until": "2026-12-01", "hotfix_hours": "2"}
    found = watch(LINE, [image(age=40 * HOUR, **said)], now=NOW, unpublished_since=NOW - 3 * HOUR)
    assert told(found) == ["hotfix_hours breached", "replace_frequency breached", "provided_until warning"]
    assert str(found[1]) == (
        f"breached: {LINE}_latest (id-3): replace_frequency: 'daily', and the latest image is of 2026-11-19 17:00 UTC, "
        "40 h old; broken since 2026-11-21 05:00 UTC"
    )


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-20T09:00:00"])
def test_an_odd_build_time_falls_back_to_the_records(text: str) -> None:
    found = watch(LINE, [image(replace_frequency="daily", imgfactory_built_at=text)], now=NOW + 2 * DAY)
    assert told(found) == ["replace_frequency breached"]
