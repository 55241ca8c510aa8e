"""Test the record of the instances that readings may not show yet."""

from __future__ import annotations

import math
from typing import ClassVar

import anyio

from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._api.expected import ExpectedInstances


def instance(instance_id: str) -> Instance:
    return Instance(
        instance_id=instance_id,
        instance_args=InstanceArgs(model_id="a--b"),
        instance_status=InstanceStatus(status="pending"),
    )


class CountedTime(float):
    """A time that counts how often it is compared."""

    count: ClassVar[int] = 0

    def __gt__(self, other: float) -> bool:
        CountedTime.count += 1
        return float(self) > other


async def test_an_addition_does_not_check_all_others() -> None:
    expected, until = ExpectedInstances(), anyio.current_time() + 60.0
    CountedTime.count = 0
    for number in range(1000):
        expected.add(instance(str(number)), CountedTime(until), was_stopped=False)
        expected.note_active(str(number))
    assert CountedTime.count == 1000
    assert expected.visible_at("0") == -math.inf


async def test_an_addition_drops_the_ones_that_have_expired() -> None:
    expected, start = ExpectedInstances(), anyio.current_time()
    for name, seconds in (("", 10.0), ("a", 10.0), ("b", 30.0)):
        expected.add(instance(name), start + seconds, was_stopped=False)
        expected.note_active(name)
    # Restarted: its time begins again, and no reading has shown it since.
    expected.add(instance("a"), start + 40.0, was_stopped=True)
    assert expected.visible_at("a") == start + 40.0
    await anyio.sleep(20.0)
    expected.add(instance("c"), start + 60.0, was_stopped=False)
    assert [*expected._expected] == ["b", "a", "c"]
    assert expected._seen == {"b"}
    assert [each.instance_id for each in expected.not_visible(())] == ["c"]
    await anyio.sleep(25.0)
    expected.add(instance("b"), start + 80.0, was_stopped=False)
    assert [*expected._expected] == ["c", "b"]
    assert expected._seen == set()


async def test_a_stopped_one_is_dropped() -> None:
    expected = ExpectedInstances()
    expected.add(instance("a"), anyio.current_time() + 60.0, was_stopped=False)
    expected.note_active("a")
    expected.discard("a", "unknown")
    assert (expected._expected, expected._seen) == ({}, set())
    assert not expected.may_be_outdated("a", None, anyio.current_time())
