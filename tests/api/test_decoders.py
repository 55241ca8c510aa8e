"""Test the generated functions: they decode to the same objects as cattrs, and usually without it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortecs_async._api import decoders
from cortecs_async._api.catalog import Balance, HardwareConfig, HardwareType, Model
from cortecs_async._api.decoders import decode, decode_list
from cortecs_async._api.domain import (
    AffectedInstances,
    InitProgress,
    Instance,
    InstanceArgs,
    InstanceStatus,
    WorkerStatus,
)
from cortecs_async._api.previews import ModelPreview
from cortecs_async._api.structuring import structure
from cortecs_async._http.messages import ShapeError

PROGRESS = {"current_step": 5, "num_steps": 5.0, "description": "two\nlines"}
ARGS = {"model_id": "a--b", "hardware_type_id": "X", "context_length": 8192.0, "num_workers": None}
STATUS = {"status": "running", "started_at": "2024-08-07T08:53:13Z", "stopped_at": "never"}
CONFIG = {
    "hardware_type_id": "X",
    "params": {"--max-model-len": 131072, "a\nb": ["c\td"]},
    "requirements": None,
}

# Each as the service may send it: with values that are used as they are, others that are converted, and gaps.
EXAMPLES: dict[type[Any], dict[str, Any]] = {
    InitProgress: PROGRESS,
    InstanceArgs: ARGS,
    InstanceStatus: STATUS,
    WorkerStatus: {"init_progress": PROGRESS, "unknown": [1]},
    Instance: {
        "instance_id": "instance-1",
        "base_url": "https://a.test/v1",
        "instance_args": ARGS,
        "instance_status": STATUS,
        "worker_statuses": [{"init_progress": PROGRESS}, {"init_progress": None}, {}],
    },
    AffectedInstances: {"instance_ids": ["a", "b\n"], "message": None},
    ModelPreview: {
        "model_id": "a--b",
        "instant_provisioned": True,
        "creator": {"name": "a\tb"},
        "description": "two\nlines",
        "size": 8,
        "hardware_configs": ["X"],
    },
    HardwareConfig: CONFIG,
    Model: {"model_id": "a--b", "hf_name": "a/b", "hardware_configs": {"X\n": CONFIG, "Y": {}}},
    HardwareType: {"hardware_type_id": "X", "price_info": {"eur": 1.5}},
    Balance: {"current_balance": "1.5", "currency": "EUR"},
}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([10**400, "2024-08-07T10:53:13+02:00", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any) -> Iterator[tuple[dict[Any, Any] | list[Any], Any]]:
    """Yield each container in some JSON with each of its keys or indexes."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
@given(content=st.data())
@settings(max_examples=50, derandomize=True)
def test_a_changed_object_decodes_as_with_cattrs(cls: type[Any], content: st.DataObject) -> None:
    data = copy.deepcopy(EXAMPLES[cls])
    for _ in range(content.draw(st.integers(0, 2))):
        container, key = content.draw(st.sampled_from([*places(data)]))
        if content.draw(st.booleans()):
            container[key] = content.draw(VALUES)
        else:
            del container[key]
            if not [*places(data)]:
                break
    expected: Any = None
    problem = None
    try:
        expected = structure(data, cls)
    except ShapeError as error:
        problem = str(error)
    if problem is not None:
        with pytest.raises(ShapeError) as caught:
            decode(data, cls)
        assert str(caught.value) == problem
        (entry,) = decode_list([data], cls, "instance_id", None).unreadable
        assert entry.problem == problem
        return
    decoded = decode(data, cls)
    # The texts differ where 1 is not True, and two equal times have different zones.
    assert repr(decoded) == repr(expected)
    assert decode_list([data], cls, "instance_id", None) == (decoded,)
    if "nan" not in repr(expected):
        assert decoded == expected


@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
def test_usual_data_needs_no_cattrs(cls: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cortecs_async._api.structuring", None)
    decoded = decode(EXAMPLES[cls], cls)
    assert type(decoded) is cls
    assert decode_list([EXAMPLES[cls]], cls, "", None) == (decoded,)
    with pytest.raises(ImportError):
        decode(5, cls)


@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
def test_a_constructor_does_nothing_that_is_skipped(cls: type[Any]) -> None:
    assert cls.__init__.__qualname__.endswith("__init__")
    assert not {"__attrs_post_init__", "__attrs_pre_init__", "__dict__"} & {*dir(cls)}
    for each in attrs.fields(cls):
        assert (each.validator, each.converter, each.on_setattr, each.init) == (None, None, None, True)
        assert not isinstance(each.default, attrs.Factory) or not each.default.takes_self  # type: ignore[arg-type]


def test_equal_arguments_and_steps_are_one_object() -> None:
    first, second = decode_list([EXAMPLES[Instance]] * 2, Instance, "instance_id", None)
    assert first is not second
    assert first.instance_args is second.instance_args
    assert first.worker_statuses[0].init_progress is second.worker_statuses[0].init_progress
    others = decode_list([{**ARGS, "num_workers": n} for n in (1, 2, True)], InstanceArgs, "model_id", None)
    assert [each.num_workers for each in others] == [1, 2]
    assert len(others.unreadable) == 1


def test_equal_times_keep_their_zones() -> None:
    times = ["2024-08-07T08:53:13Z", "2024-08-07T10:53:13+02:00"]
    found = decode_list([{**STATUS, "started_at": each} for each in times], InstanceStatus, "", None)
    zones = [each.started_at and each.started_at.utcoffset() for each in found]
    assert zones == [timedelta(0), timedelta(hours=2)]


def test_shared_objects_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_MAX_SHARED", 3)
    read = decoders._object_reader(InstanceArgs)
    made = [read({"model_id": str(number % 5)}) for number in range(20)]
    assert [each.model_id for each in made] == [str(number % 5) for number in range(20)]
    shared = read.__globals__["shared"]
    assert 1 <= len(shared) <= 3
