"""Test decoding: the documented payloads, liberal reading, and rejected answers."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from cortecs_async._api.catalog import Balance, HardwareConfig, HardwareType
from cortecs_async._api.catalog_wire import (
    decode_balance,
    decode_hardware_types,
    decode_model,
    decode_models,
)
from cortecs_async._api.domain import (
    AffectedInstances,
    InitProgress,
    Instance,
    InstanceArgs,
    InstanceStatus,
    Progress,
    WorkerStatus,
)
from cortecs_async._api.listing import Listing, UnreadableEntry, existing_ids
from cortecs_async._api.previews import ModelPreview
from cortecs_async._api.wire import (
    decode_affected,
    decode_instance,
    decode_instances,
    decode_started,
    encode_start,
)
from cortecs_async._http.messages import ShapeError

# The payloads of the published reference (docs.cortecs.ai, API, Instances), letter by letter.
LISTED = """
{
  "instances": [
    {
      "instance_id": "instance-12345",
      "base_url": "https://abcd-123456.eu/v1",
      "instance_args": {
        "model_id": "meta-llama--Meta-Llama-3.1-8B-Instruct",
        "hardware_type_id": "NVIDIA_H100_1",
        "context_length": 8192,
        "billing_interval": "per_minute"
      },
      "instance_status": {
        "started_at": "2024-08-07T08:53:13Z",
        "stopped_at": null,
        "status": "running"
      },
      "worker_statuses": [
        {
          "init_progress": {
            "current_step": 5,
            "num_steps": 5,
            "description": "Running"
          }
        }
      ]
    }
  ]
}
"""
GOT = """
{
  "instance": {
    "instance_id": "instance-12345",
    "base_url": "https://abcd-123456.eu/v1",
    "instance_args": {
      "model_id": "meta-llama--Meta-Llama-3.1-8B-Instruct",
      "hardware_type_id": "NVIDIA_H100_1",
      "context_length": 8192,
      "billing_interval": "per_minute"
    },
    "instance_status": {
      "started_at": "2024-08-07T08:53:13Z",
      "stopped_at": null,
      "status": "running"
    },
    "worker_statuses": [
      {
        "init_progress": {
          "current_step": 5,
          "num_steps": 5,
          "description": "Running"
        }
      }
    ]
  }
}
"""
STARTED = GOT.replace("{", '{\n  "message": "Instance is starting.",', 1)
STOPPED = GOT.replace("{", '{\n  "message": "Instance stopped successfully",', 1)
ALL_STOPPED = """
{
  "message": "All instances stopped successfully.",
  "instance_ids": [
    "instance-12345",
    "instance-67890"
  ]
}
"""
ALL_DELETED = ALL_STOPPED.replace("stopped", "deleted")
START_BODY = """
{
  "model_id": "meta-llama--Meta-Llama-3.1-8B-Instruct",
  "hardware_type_id": "NVIDIA_H100_1",
  "billing_interval": "per_minute",
  "context_length": 8192,
  "num_workers": 1
}
"""

DOCUMENTED = Instance(
    instance_id="instance-12345",
    base_url="https://abcd-123456.eu/v1",
    instance_args=InstanceArgs(
        model_id="meta-llama--Meta-Llama-3.1-8B-Instruct",
        hardware_type_id="NVIDIA_H100_1",
        context_length=8192,
        billing_interval="per_minute",
        num_workers=1,
    ),
    instance_status=InstanceStatus(
        status="running", started_at=datetime(2024, 8, 7, 8, 53, 13, tzinfo=UTC), stopped_at=None
    ),
    worker_statuses=(
        WorkerStatus(init_progress=InitProgress(current_step=5, num_steps=5, description="Running")),
    ),
)


def encode(value: Any) -> dict[str, Any]:
    """Write a domain object as the service does."""

    def serialize(_: Any, __: Any, content: Any) -> Any:
        return re.sub(r"\+00:00$", "Z", content.isoformat()) if isinstance(content, datetime) else content

    # No documented answer has `num_workers`, so 1 is left out.
    data = attrs.asdict(
        value,
        filter=lambda attribute, content: (attribute.name, content) != ("num_workers", 1),
        value_serializer=serialize,
    )
    encoded: dict[str, Any] = json.loads(json.dumps(data))
    return encoded


class TestDocumentedPayloads:
    @pytest.mark.parametrize("payload", [GOT, STARTED, STOPPED], ids=["get", "start", "stop"])
    def test_one_instance(self, payload: str) -> None:
        data = json.loads(payload)
        instance = decode_instance(data)
        assert instance == DOCUMENTED
        assert encode(instance) == data["instance"]

    def test_the_list(self) -> None:
        data = json.loads(LISTED)
        instances = decode_instances(data)
        assert instances == (DOCUMENTED,)
        assert [encode(each) for each in instances] == data["instances"]

    @pytest.mark.parametrize("payload", [ALL_STOPPED, ALL_DELETED], ids=["stop-all", "delete-all"])
    def test_stop_all_and_delete_all(self, payload: str) -> None:
        data = json.loads(payload)
        affected = decode_affected(data)
        assert affected.instance_ids == ("instance-12345", "instance-67890")
        assert encode(affected) == data

    def test_the_body_of_a_start(self) -> None:
        data = json.loads(START_BODY)
        assert encode_start(InstanceArgs(**data)) == data

    def test_a_start_leaves_defaults_to_the_service(self) -> None:
        assert encode_start(InstanceArgs(model_id="a--b")) == {"model_id": "a--b", "num_workers": 1}

    def test_the_balance(self) -> None:
        assert decode_balance({"current_balance": 1234.56, "currency": "EUR"}) == Balance(
            current_balance=1234.56, currency="EUR"
        )

    def test_the_models(self) -> None:
        (preview,) = decode_models(
            {
                "models": [
                    {
                        "model_id": "a--b",
                        "hf_name": "a/b",
                        "instant_provisioned": True,
                        "creator": {"name": "a"},
                        "description": "words",
                        "screen_name": "B",
                        "size": 8,
                        "hardware_info": {"hardware_configs": ["NVIDIA_H100_1", "NVIDIA_L40S_2"]},
                    }
                ]
            }
        )
        assert preview == ModelPreview(
            model_id="a--b",
            hf_name="a/b",
            instant_provisioned=True,
            creator={"name": "a"},
            description="words",
            screen_name="B",
            size=8.0,
            hardware_configs=("NVIDIA_H100_1", "NVIDIA_L40S_2"),
        )

    def test_a_model(self) -> None:
        model = decode_model(
            {
                "model": {
                    "model_id": "a--b",
                    "hf_name": "a/b",
                    "recommended_config": "NVIDIA_H100_1",
                    "hardware_configs": {
                        "NVIDIA_H100_1": {
                            "hardware_type_id": "NVIDIA_H100_1",
                            "params": {"--max-model-len": 131072, "--other": None},
                            "requirements": {"x": [1]},
                        },
                        "NVIDIA_L40S_2": {},
                    },
                }
            }
        )
        assert model.recommended_config == "NVIDIA_H100_1"
        assert model.hardware_configs["NVIDIA_H100_1"].max_context_length == 131072
        assert model.hardware_configs["NVIDIA_H100_1"].requirements == {"x": [1]}
        assert model.hardware_configs["NVIDIA_L40S_2"] == HardwareConfig()
        assert model.hardware_configs["NVIDIA_L40S_2"].max_context_length is None

    def test_hardware_types(self) -> None:
        data = {
            "hardware_types": [
                {
                    "hardware_type_id": "NVIDIA_L40S_2",
                    "price_info": {"any": 1},
                    "hardware_info": {"thing": []},
                },
                {"hardware_type_id": "X"},
            ]
        }
        first, second = decode_hardware_types(data)
        assert encode(first) == data["hardware_types"][0]
        assert second.price_info == second.hardware_info == {}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the documented instance with one value changed; `...` removes it."""
    data: dict[str, Any] = json.loads(GOT)
    *way, last = path.split(".")
    target = data["instance"]
    for name in way:
        target = target[int(name)] if name.isdigit() else target[name]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return data


class TestLiberalReading:
    @pytest.mark.parametrize(
        "path", ["extra", "instance_args.extra", "instance_status.extra", "worker_statuses.0.extra"]
    )
    def test_unknown_fields_are_ignored(self, path: str) -> None:
        assert decode_instance(changed(path, {"deep": [1, None]})) == DOCUMENTED

    @pytest.mark.parametrize("status", ["draining", "", "running?", "späť", "error: no space left"])
    def test_unknown_statuses_are_kept(self, status: str) -> None:
        instance = decode_instance(changed("instance_status.status", status))
        assert instance.status == status
        assert not instance.is_usable
        assert encode(instance)["instance_status"]["status"] == status

    @pytest.mark.parametrize("status", ["running", "Running", "RUNNING"])
    def test_a_running_instance_is_usable_in_any_case(self, status: str) -> None:
        instance = decode_instance(changed("instance_status.status", status))
        assert instance.status == status
        assert instance.is_usable

    @pytest.mark.parametrize("value", [None, 1, 1.0])
    def test_a_missing_number_of_workers_is_one(self, value: Any) -> None:
        assert decode_instance(json.loads(GOT)).instance_args.num_workers == 1
        assert decode_instance(changed("instance_args.num_workers", value)) == DOCUMENTED

    def test_more_workers_are_written_back(self) -> None:
        data = changed("instance_args.num_workers", 2)
        assert encode(decode_instance(data)) == data["instance"]

    @pytest.mark.parametrize("value", [..., None, []], ids=["absent", "null", "empty"])
    def test_no_workers(self, value: Any) -> None:
        instance = decode_instance(changed("worker_statuses", value))
        assert instance.worker_statuses == ()
        progress = Progress(instance=instance, elapsed=1.0)
        assert progress.workers == ()
        assert progress.leading == InitProgress()

    @pytest.mark.parametrize("value", [{}, {"init_progress": None}], ids=["absent", "null"])
    def test_a_worker_without_progress(self, value: Any) -> None:
        assert decode_instance(changed("worker_statuses", [value])).worker_statuses == (WorkerStatus(),)

    @pytest.mark.parametrize("value", [..., None, "", 5, True, {"url": "x"}, ["x"]], ids=repr)
    def test_a_running_instance_without_an_address_is_not_usable(self, value: Any) -> None:
        instance = decode_instance(changed("base_url", value))
        assert not instance.base_url
        assert not instance.is_usable
        assert DOCUMENTED.is_usable

    @pytest.mark.parametrize("name", ["hardware_type_id", "billing_interval", "context_length"])
    @pytest.mark.parametrize("value", [..., None], ids=["absent", "null"])
    def test_optional_arguments(self, name: str, value: Any) -> None:
        assert getattr(decode_instance(changed(f"instance_args.{name}", value)).instance_args, name) is None

    @pytest.mark.parametrize("value", [8192.0, 8192])
    def test_a_whole_number_may_be_written_as_a_float(self, value: float) -> None:
        found = decode_instance(changed("instance_args.context_length", value)).instance_args.context_length
        assert found == 8192
        assert isinstance(found, int)

    @pytest.mark.parametrize(
        "data",
        [None, {}, {"instance_ids": None}, {"instance_ids": []}, {"message": None}, {"other": 1}],
        ids=json.dumps,
    )
    def test_nothing_was_affected(self, data: Any) -> None:
        assert decode_affected(data) == AffectedInstances()

    def test_progress_with_gaps(self) -> None:
        data = changed("worker_statuses", [{"init_progress": {"current_step": 2}}, {"init_progress": {}}])
        first, second = decode_instance(data).worker_statuses
        assert first.init_progress == InitProgress(current_step=2)
        assert second.init_progress == InitProgress()

    def test_an_older_spelling_of_the_model_id_wins(self) -> None:
        (preview,) = decode_models({"models": [{"model_id": "new--x", "model_name": "old--x"}]})
        assert preview.model_id == "old--x"
        (preview,) = decode_models(
            {"models": [{"model_id": "new--x", "model_name": None, "hardware_info": None}]}
        )
        assert preview == ModelPreview(model_id="new--x")

    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ({"model_id": "a--b"}, "a--b"),
            ({"model_name": "a--b"}, "a--b"),
            ({"model_name": "a--b", "model_id": "7f"}, "a--b"),
            ({"model_name": None, "model_id": "a--b"}, "a--b"),
            ({"model_name": "", "model_id": "a--b"}, "a--b"),
            ({"model_name": ["a"], "model_id": "a--b"}, "a--b"),
            ({}, "requested"),
            ({"model_id": None}, "requested"),
            ({"model_id": ""}, "requested"),
        ],
        ids=repr,
    )
    def test_a_model_may_name_itself_in_other_ways(self, model: dict[str, Any], expected: str) -> None:
        content = {"recommended_config": "X", "hardware_configs": {"X": {"params": {}}}}
        found = decode_model({"model": {**model, **content}}, requested_id="requested")
        assert found.model_id == expected
        assert found.recommended_config == "X"
        assert found.hardware_configs == {"X": HardwareConfig()}

    def test_a_model_with_a_wrong_name_is_read_without_it(self) -> None:
        model = decode_model({"model": {"model_id": "a--b", "hf_name": 5}})
        assert (model.model_id, model.hf_name) == ("a--b", "")

    @pytest.mark.parametrize(
        "value",
        ["", "131k", "-1", "1.5", "١٢", "9" * 400, None, [1], True, 0, -1, 1.5, 10**400, float("nan")],
        ids=lambda value: ascii(value)[:20],
    )
    def test_a_wrong_longest_context_is_unknown(self, value: Any) -> None:
        for name in ("--max-model-len", "max_context_length"):
            assert HardwareConfig(params={name: value}).max_context_length is None
        both = HardwareConfig(params={"--max-model-len": value, "max_context_length": 4096})
        assert both.max_context_length == 4096

    @pytest.mark.parametrize("value", [8192, 8192.0, "8192"], ids=repr)
    def test_a_longest_context_may_be_written_in_other_ways(self, value: Any) -> None:
        found = HardwareConfig(params={"--max-model-len": value}).max_context_length
        assert found == 8192
        assert type(found) is int

    @pytest.mark.parametrize(
        "config",
        [
            {"max_context_length": 8192},
            {"max_context_length": "8192", "params": None},
            {"max_context_length": 8192, "params": {"--other": 1}},
            {"params": {"max_context_length": 8192}},
            {"max_context_length": 4096, "params": {"max_context_length": 8192}},
            {"max_context_length": 4096, "params": {"--max-model-len": 8192}},
            {"max_context_length": None, "params": {"--max-model-len": 8192}},
        ],
        ids=repr,
    )
    def test_an_older_name_of_the_longest_context(self, config: dict[str, Any]) -> None:
        model = decode_model({"model": {"model_id": "a", "hardware_configs": {"X": config}}})
        assert model.hardware_configs["X"].max_context_length == 8192


class TestProgress:
    @staticmethod
    def progress(
        *steps: tuple[int, int] | None, status: str = "pending", base_url: str | None = None
    ) -> Progress:
        workers = [
            {"init_progress": each and {"current_step": each[0], "num_steps": each[1]}} for each in steps
        ]
        data = changed("worker_statuses", workers)
        data["instance"].update(base_url=base_url)
        data["instance"]["instance_status"]["status"] = status
        return Progress(instance=decode_instance(data), elapsed=1.0)

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ([], 0.0),
            ([None], 0.0),
            ([(0, 0)], 0.0),
            ([(3, 0)], 0.0),
            ([(0, 5)], 0.0),
            ([(-4, 5)], 0.0),
            ([(1, 5)], 0.0),
            ([(3, 5)], 0.4),
            ([(5, 5)], 0.8),
            ([(9, 5)], 1.0),
            ([(1, 5), None, (4, 5)], 0.6),
        ],
        ids=repr,
    )
    def test_follows_the_most_advanced_worker(self, steps: list[Any], expected: float) -> None:
        assert self.progress(*steps).fraction == pytest.approx(expected)

    def test_is_complete_only_when_usable(self) -> None:
        assert self.progress((5, 5), status="running").fraction < 1
        assert self.progress(status="running", base_url="https://x.test/v1").fraction == 1

    def test_description(self) -> None:
        assert self.progress(status="pending").description == "pending"
        assert Progress(instance=DOCUMENTED, elapsed=0.0).description == "Running"

    def test_the_name_for_the_inference_endpoint(self) -> None:
        assert DOCUMENTED.instance_args.hf_name == "meta-llama/Meta-Llama-3.1-8B-Instruct"


class TestTimes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2024-08-07T08:53:13Z", datetime(2024, 8, 7, 8, 53, 13, tzinfo=UTC)),
            ("2024-08-07T08:53:13", datetime(2024, 8, 7, 8, 53, 13, tzinfo=UTC)),
            ("2024-08-07 08:53:13.5+00:00", datetime(2024, 8, 7, 8, 53, 13, 500_000, tzinfo=UTC)),
            ("2024-08-07T10:53:13+02:00", datetime(2024, 8, 7, 8, 53, 13, tzinfo=UTC)),
            ("2024-08-07", datetime(2024, 8, 7, tzinfo=UTC)),
        ],
    )
    def test_timestamps_have_a_time_zone(self, text: str, expected: datetime) -> None:
        moment = decode_instance(changed("instance_status.started_at", text)).instance_status.started_at
        assert moment == expected
        assert moment is not None
        assert moment.tzinfo is not None

    @pytest.mark.parametrize(
        "odd",
        [
            "",
            "yesterday",
            "2024-13-40T99:99:99Z",
            "0000-00-00 00:00:00",
            1723020793,
            0,
            False,
            1.5,
            [],
            {},
            "\ud800",
        ],
        ids=ascii,
    )
    def test_a_wrong_timestamp_leaves_its_instance_readable(self, odd: Any) -> None:
        for name in ("started_at", "stopped_at"):
            instance = decode_instance(changed(f"instance_status.{name}", odd))
            assert getattr(instance.instance_status, name) is None
            assert instance.instance_id == "instance-12345"

    @given(
        st.datetimes(
            min_value=datetime(1, 1, 3),  # noqa: DTZ001
            max_value=datetime(9999, 12, 29),  # noqa: DTZ001
            timezones=st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds))),
        )
    )
    @settings(max_examples=100, derandomize=True)
    def test_a_timestamp_round_trips(self, moment: datetime) -> None:
        status = encode(InstanceStatus(status="x", started_at=moment))
        data = changed("instance_status", status)
        assert decode_instance(data).instance_status.started_at == moment


PRIVATE = "t0p-s3cret"


class TestOtherShapes:
    @pytest.mark.parametrize(
        ("path", "value", "where"),
        [
            ("instance_id", None, "$.instance_id"),
            ("instance_id", ..., "$.instance_id"),
            ("instance_id", 12345, "$.instance_id"),
            ("instance_id", [PRIVATE], "$.instance_id"),
            ("instance_args", None, "$.instance_args"),
            ("instance_args", ..., "$.instance_args"),
            ("instance_args", PRIVATE, "$.instance_args"),
            ("instance_args", [], "$.instance_args"),
            ("instance_args.model_id", None, "$.instance_args.model_id"),
            ("instance_args.model_id", 1, "$.instance_args.model_id"),
            ("instance_args.num_workers", PRIVATE, "$.instance_args.num_workers"),
            ("instance_args.num_workers", True, "$.instance_args.num_workers"),
            ("instance_args.num_workers", 1.5, "$.instance_args.num_workers"),
            ("instance_args.context_length", float("nan"), "$.instance_args.context_length"),
            ("instance_args.context_length", float("inf"), "$.instance_args.context_length"),
            ("instance_args.context_length", PRIVATE, "$.instance_args.context_length"),
            ("instance_status", None, "$.instance_status"),
            ("instance_status", "running", "$.instance_status"),
            ("instance_status.status", None, "$.instance_status.status"),
            ("instance_status.status", ..., "$.instance_status.status"),
            ("instance_status.status", 3, "$.instance_status.status"),
        ],
    )
    def test_the_error_names_the_path_and_hides_the_value(self, path: str, value: Any, where: str) -> None:
        with pytest.raises(ShapeError) as caught:
            decode_instance(changed(path, value))
        assert where in str(caught.value)
        assert PRIVATE not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__

    @pytest.mark.parametrize("value", [PRIVATE, {}, "", 5, True], ids=repr)
    def test_wrong_progress_leaves_its_instance_readable(self, value: Any) -> None:
        assert decode_instance(changed("worker_statuses", value)).worker_statuses == ()

    @pytest.mark.parametrize(
        "worker",
        [
            PRIVATE,
            [],
            {"init_progress": PRIVATE},
            {"init_progress": {"current_step": PRIVATE, "num_steps": 5}},
            {"init_progress": {"current_step": float("-inf")}},
            {"init_progress": {"description": 7}},
        ],
        ids=repr,
    )
    def test_a_wrong_worker_leaves_the_others_readable(self, worker: Any) -> None:
        fine = {"init_progress": {"current_step": 2, "num_steps": 5, "description": "Loading"}}
        data = changed("worker_statuses", [worker, fine])
        expected = WorkerStatus(
            init_progress=InitProgress(current_step=2, num_steps=5, description="Loading")
        )
        assert decode_instance(data).worker_statuses == (WorkerStatus(), expected)

    @pytest.mark.parametrize(
        "data", [None, [], "instance", 5, {}, {"instance": None}, {"instances": []}], ids=repr
    )
    def test_an_answer_without_an_instance(self, data: Any) -> None:
        with pytest.raises(ShapeError, match="instance"):
            decode_instance(data)

    # Code that only iterates would take each of these for an empty list.
    @pytest.mark.parametrize(
        ("decode", "name"),
        [
            (decode_instances, "instances"),
            (decode_models, "models"),
            (decode_hardware_types, "hardware_types"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_list_of_another_type(self, decode: Callable[[Any], Any], name: str) -> None:
        odd: list[Any] = [None, {}, "", 0, False, {"instance-1": {}}, "abc", ()]
        for value in odd:
            with pytest.raises(ShapeError):
                decode({name: value})
        assert decode({name: []}) == ()

    @pytest.mark.parametrize("value", ["instance-1", {"instance-1": 1}, 5, [None], [1], [["a"]]], ids=repr)
    def test_ids_of_another_type(self, value: Any) -> None:
        with pytest.raises(ShapeError, match=r"\$\.instance_ids"):
            decode_affected({"instance_ids": value})

    @pytest.mark.parametrize("data", [[], "x", 5, True], ids=repr)
    def test_what_was_affected_is_an_object(self, data: Any) -> None:
        with pytest.raises(ShapeError):
            decode_affected(data)

    @pytest.mark.parametrize(
        "value",
        [float("nan"), float("inf"), float("-inf"), "NaN", None, ..., True, [], PRIVATE, 10**400],
        ids=repr,
    )
    def test_a_balance_is_a_number(self, value: Any) -> None:
        data = {"current_balance": value, "currency": "EUR"}
        if value is ...:
            del data["current_balance"]
        with pytest.raises(ShapeError, match=r"\$\.current_balance") as caught:
            decode_balance(data)
        assert PRIVATE not in str(caught.value)

    @pytest.mark.parametrize(
        ("decode", "data"),
        [
            (decode_model, {"model": {}}),
            (decode_model, {"model": {"model_id": "a", "hardware_configs": []}}),
            (decode_model, {"model": {"model_id": "a", "hardware_configs": {"X": 5}}}),
            (decode_model, {"model": {"model_id": "a", "hardware_configs": {"X": {"params": "none"}}}}),
            (
                decode_model,
                {
                    "model": {
                        "model_id": "a",
                        "hardware_configs": {"X": {"params": [], "max_context_length": 1}},
                    }
                },
            ),
            (decode_model, {"model": {"model_id": 5}}),
            (decode_model, {"model": "a"}),
            (decode_balance, None),
            (decode_balance, []),
        ],
        ids=lambda value: getattr(value, "__name__", repr(value)),
    )
    def test_others(self, decode: Callable[[Any], Any], data: Any) -> None:
        with pytest.raises(ShapeError):
            decode(data)


def whole(**changes: Any) -> dict[str, Any]:
    """Return the documented entry of the list with some values changed; `...` removes one."""
    entry = {**json.loads(GOT)["instance"], **changes}
    return {name: value for name, value in entry.items() if value is not ...}


def args(**changes: Any) -> dict[str, Any]:
    return {**whole()["instance_args"], **changes}


class TestUnreadableEntries:
    @pytest.mark.parametrize(
        ("entry", "entry_id", "problem"),
        [
            (whole(instance_args=None), "instance-12345", "at $.instance_args, a field is null or missing"),
            (whole(instance_args=...), "instance-12345", "at $.instance_args, a field is null or missing"),
            (
                whole(instance_args=[PRIVATE]),
                "instance-12345",
                "at $.instance_args, expected an object, but got a value of type list",
            ),
            (
                whole(instance_args=args(context_length="8192")),
                "instance-12345",
                "at $.instance_args.context_length, expected a whole number, but got a value of type str",
            ),
            (
                whole(instance_args=args(model_id=None)),
                "instance-12345",
                "at $.instance_args.model_id, a field is null or missing",
            ),
            (
                whole(instance_args=args(num_workers=PRIVATE)),
                "instance-12345",
                "at $.instance_args.num_workers, expected a whole number, but got a value of type str",
            ),
            (
                whole(instance_status=None),
                "instance-12345",
                "at $.instance_status, a field is null or missing",
            ),
            (
                whole(instance_status=...),
                "instance-12345",
                "at $.instance_status, a field is null or missing",
            ),
            (
                whole(instance_status="running"),
                "instance-12345",
                "at $.instance_status, expected an object, but got a value of type str",
            ),
            (
                whole(instance_status={}),
                "instance-12345",
                "at $.instance_status.status, a field is null or missing",
            ),
            (whole(instance_id=None), None, "at $.instance_id, a field is null or missing"),
            (whole(instance_id=...), None, "at $.instance_id, a field is null or missing"),
            (
                whole(instance_id=12345),
                None,
                "at $.instance_id, expected a string, but got a value of type int",
            ),
            ({"instance_id": PRIVATE}, PRIVATE, "at $.instance_args, a field is null or missing"),
            ({}, None, "at $.instance_id, a field is null or missing"),
            (None, None, "at $, expected an object, but got null"),
            (PRIVATE, None, "at $, expected an object, but got a value of type str"),
            (5, None, "at $, expected an object, but got a value of type int"),
            (True, None, "at $, expected an object, but got a value of type bool"),
            ([whole()], None, "at $, expected an object, but got a value of type list"),
        ],
    )
    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_an_instance_among_others(
        self, entry: Any, entry_id: str | None, problem: str, position: int
    ) -> None:
        entries = [whole(instance_id="a"), whole(instance_id="b")]
        entries.insert(position, entry)
        instances = decode_instances({"instances": entries}, 1.5)
        assert [*instances] == [evolve(DOCUMENTED, instance_id=each) for each in "ab"]
        assert instances.unreadable == (UnreadableEntry(entry_id=entry_id, problem=problem),)
        assert PRIVATE not in instances.unreadable[0].problem
        assert instances.date == 1.5
        assert existing_ids(instances) == {"a", "b"} | ({entry_id} - {None})

    @pytest.mark.parametrize("value", [5, PRIVATE, {}, [None, 5, PRIVATE, {"init_progress": 5}]], ids=repr)
    def test_odd_workers_leave_their_instance_readable(self, value: Any) -> None:
        instances = decode_instances({"instances": [whole(worker_statuses=value, base_url=5)]})
        assert [each.instance_id for each in instances] == ["instance-12345"]
        assert instances.unreadable == ()

    def test_no_entry_can_be_read(self) -> None:
        instances = decode_instances({"instances": [None, {"instance_id": "a"}]})
        assert not instances
        assert [each.entry_id for each in instances.unreadable] == [None, "a"]
        assert existing_ids(instances) == {"a"}

    @pytest.mark.parametrize(
        ("entry", "entry_id"),
        [
            ({}, None),
            ({"model_id": 5}, None),
            ("a--b", None),
            (None, None),
            ({"model_id": "a", "creator": "b"}, "a"),
            ({"model_id": "new", "model_name": "a", "size": PRIVATE}, "a"),
            ({"model_id": "a", "hardware_info": {"hardware_configs": "X"}}, "a"),
        ],
        ids=repr,
    )
    def test_a_model_among_others(self, entry: Any, entry_id: str | None) -> None:
        models = decode_models({"models": [{"model_id": "x"}, entry, {"model_id": "y"}]}, 2.0)
        assert [*models] == [ModelPreview(model_id="x"), ModelPreview(model_id="y")]
        (unreadable,) = models.unreadable
        assert unreadable.entry_id == entry_id
        assert unreadable.problem.startswith("at $")
        assert PRIVATE not in unreadable.problem
        assert models.date == 2.0

    @pytest.mark.parametrize(
        ("entry", "entry_id"),
        [
            ({"price_info": {}}, None),
            ("X", None),
            ({"hardware_type_id": ["X"]}, None),
            ({"hardware_type_id": "X", "price_info": 5}, "X"),
        ],
        ids=repr,
    )
    def test_a_hardware_type_among_others(self, entry: Any, entry_id: str | None) -> None:
        types = decode_hardware_types({"hardware_types": [entry, {"hardware_type_id": "Y"}]}, 3.0)
        assert [*types] == [HardwareType(hardware_type_id="Y")]
        assert [each.entry_id for each in types.unreadable] == [entry_id]
        assert types.date == 3.0


class TestStarted:
    SENT = InstanceArgs(model_id="a--b", context_length=8192)

    def test_a_readable_response_is_read(self) -> None:
        assert decode_started(json.loads(STARTED), self.SENT) == DOCUMENTED

    @pytest.mark.parametrize(
        "entry",
        [
            {"instance_id": "instance-12345"},
            whole(instance_args=None),
            whole(instance_args=args(context_length="8192")),
            whole(instance_status=None),
            whole(instance_status={"status": 5}),
        ],
        ids=ascii,
    )
    def test_its_id_is_enough(self, entry: dict[str, Any]) -> None:
        status = InstanceStatus(status="pending")
        assert decode_started({"instance": entry}, self.SENT) == Instance(
            instance_id="instance-12345", instance_args=self.SENT, instance_status=status
        )

    @pytest.mark.parametrize(
        "data",
        [
            None,
            {},
            {"instance": "instance-12345"},
            *(
                {"instance": whole(instance_id=value, instance_args=None)}
                for value in [None, ..., 5, "", ["a"]]
            ),
        ],
        ids=ascii,
    )
    def test_without_an_id_nothing_is_known(self, data: Any) -> None:
        with pytest.raises(ShapeError):
            decode_started(data, self.SENT)


# --- hypothesis -----------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=12)
MOMENT = st.none() | st.datetimes(timezones=st.just(UTC))
INSTANCES = st.builds(
    Instance,
    instance_id=TEXT,
    base_url=st.none() | TEXT,
    instance_args=st.builds(
        InstanceArgs,
        model_id=TEXT,
        hardware_type_id=st.none() | TEXT,
        billing_interval=st.none() | TEXT,
        context_length=st.none() | st.integers(),
        num_workers=st.integers(1, 8),
    ),
    instance_status=st.builds(InstanceStatus, status=TEXT, started_at=MOMENT, stopped_at=MOMENT),
    worker_statuses=st.lists(
        st.builds(
            WorkerStatus,
            init_progress=st.none()
            | st.builds(InitProgress, current_step=st.integers(), num_steps=st.integers(), description=TEXT),
        ),
        max_size=3,
    ).map(tuple),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        "instance",
        "instances",
        "instance_id",
        "base_url",
        "instance_args",
        "instance_status",
        "worker_statuses",
        "init_progress",
        "current_step",
        "status",
        "started_at",
        "model_id",
        "models",
        "model",
        "hardware_types",
        "hardware_type_id",
        "hardware_configs",
        "params",
        "instance_ids",
        "current_balance",
        "currency",
    ]
)
NEARLY = st.recursive(
    JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=6,
)
DECODERS: list[Callable[[Any], Any]] = [
    decode_instance,
    decode_instances,
    decode_affected,
    decode_models,
    decode_model,
    decode_hardware_types,
    decode_balance,
]


ODD = "a\nb\r\x1b[31m\x85\u2028\u202e\ud800\tc"
CLEAN = "a b \ufffd[31m  \ufffd\ufffd c"


def test_no_text_has_line_breaks_or_control_characters() -> None:
    worker = {"status": ODD, "init_progress": {"current_step": 1, "num_steps": 5, "description": ODD}}
    found = decode_instance(
        {
            "instance": {
                "instance_id": ODD,
                "base_url": ODD,
                "instance_args": {"model_id": ODD, "hardware_type_id": ODD},
                "instance_status": {"status": ODD},
                "worker_statuses": [worker],
            }
        }
    )
    assert (found.instance_id, found.base_url, found.instance_args.model_id) == (CLEAN, CLEAN, CLEAN)
    progress = found.worker_statuses[0].init_progress
    assert progress is not None
    assert progress.description == CLEAN
    (entry,) = decode_instances({"instances": [{"instance_id": ODD}]}).unreadable
    assert entry.entry_id == CLEAN
    assert decode_started({"instance": {"instance_id": ODD}}, InstanceArgs(model_id="m")).instance_id == CLEAN
    model = decode_model({"model": {"model_id": ODD, "hf_name": ODD, "hardware_configs": {ODD: {}}}})
    assert (model.model_id, model.hf_name, list(model.hardware_configs)) == (CLEAN, CLEAN, [CLEAN])
    assert decode_balance({"current_balance": 1, "currency": ODD}).currency == CLEAN
    data = {"hardware_type_id": "h", "price_info": {ODD: [ODD, 1, {"name": ODD}]}}
    (hardware,) = decode_hardware_types({"hardware_types": [data]})
    assert hardware.price_info == {CLEAN: [CLEAN, 1, {"name": CLEAN}]}
    assert decode_affected({"message": ODD, "instance_ids": [ODD]}).instance_ids == (CLEAN,)


def test_an_id_with_a_control_character_is_not_another_id() -> None:
    for odd in ("id\n", "i\0d", "id\u200b"):
        assert decode_instances({"instances": [whole(instance_id=odd)]})[0].instance_id != "id"


@given(INSTANCES)
@settings(max_examples=80, derandomize=True)
def test_an_instance_round_trips(instance: Instance) -> None:
    sent = {"instance": encode(instance)}
    assert decode_instance(sent) == instance
    assert decode_instances({"instances": [sent["instance"]] * 2}) == (instance, instance)


@pytest.mark.parametrize("decode", DECODERS)
@given(data=NEARLY)
@settings(max_examples=60, derandomize=True)
def test_any_json_decodes_or_raises_a_shape_error(decode: Callable[[Any], Any], data: Any) -> None:
    with contextlib.suppress(ShapeError):
        decode(data)


def single(entry: Any) -> Any:
    return decode_instance({"instance": entry})


def single_model(entry: Any) -> Any:
    (model,) = decode_models({"models": [entry]})
    return model


def single_hardware_type(entry: Any) -> Any:
    (hardware_type,) = decode_hardware_types({"hardware_types": [entry]})
    return hardware_type


ENTRIES = st.lists(
    NEARLY
    | st.builds(whole, instance_id=TEXT)
    | st.builds(whole, instance_args=NEARLY)
    | st.builds(whole, instance_status=NEARLY, worker_statuses=NEARLY)
    | st.fixed_dictionaries({"model_id": TEXT, "hardware_type_id": TEXT}, optional={"price_info": NEARLY}),
    max_size=6,
)


@pytest.mark.parametrize(
    ("decode", "name", "decode_alone"),
    [
        (decode_instances, "instances", single),
        (decode_models, "models", single_model),
        (decode_hardware_types, "hardware_types", single_hardware_type),
    ],
    ids=["instances", "models", "hardware_types"],
)
@given(entries=ENTRIES)
@settings(max_examples=100, derandomize=True)
def test_the_readable_entries_are_those_that_can_be_read_alone(
    decode: Callable[[Any], Listing[Any]], name: str, decode_alone: Callable[[Any], Any], entries: list[Any]
) -> None:
    expected, unreadable = [], 0
    for entry in entries:
        try:
            expected.append(decode_alone(entry))
        except ValueError:  # a ShapeError, or nothing to unpack
            unreadable += 1
    listing = decode({name: entries})
    assert listing == tuple(expected)
    assert len(listing.unreadable) == unreadable
    for each in listing.unreadable:
        assert each.problem.startswith("at $")


@given(
    path=st.sampled_from(
        [
            "instance_id",
            "base_url",
            "instance_args",
            "instance_args.model_id",
            "instance_args.num_workers",
            "instance_args.context_length",
            "instance_status",
            "instance_status.status",
            "instance_status.started_at",
            "worker_statuses",
            "worker_statuses.0",
            "worker_statuses.0.init_progress.num_steps",
        ]
    ),
    value=NEARLY,
)
@settings(max_examples=100, derandomize=True)
def test_decoded_values_have_the_annotated_types(path: str, value: Any) -> None:
    data = changed(path, value) if not path.endswith("statuses.0") else changed("worker_statuses", [value])
    try:
        instance = decode_instance(data)
    except ShapeError:
        return
    assert isinstance(instance.instance_id, str)
    assert isinstance(instance.status, str)
    assert isinstance(instance.instance_args.model_id, str)
    assert type(instance.instance_args.num_workers) is int
    assert instance.base_url is None or isinstance(instance.base_url, str)
    assert all(isinstance(each, WorkerStatus) for each in instance.worker_statuses)
    hash(instance)
