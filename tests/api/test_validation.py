"""Test the checks of arguments."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import pytest
from _ids import ANY_TEXT, HOSTILE_IDS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cortecs_async import InvalidArgumentError
from cortecs_async._api.domain import InstanceArgs
from cortecs_async._api.model_ids import to_hf_name, to_model_id
from cortecs_async._api.validation import (
    check_body_id,
    check_hardware,
    check_instance_id,
    check_model_id,
    check_start,
)

FRIENDLY_IDS = [
    "instance-12345",
    "a",
    "0",
    "a_b",
    "a.b",
    "a~b",
    "a:b",
    "-",
    "stop-all-2",
    "starting",
    "A" * 200,
]
NO_STRINGS: list[Any] = [None, 0, 1.5, True, b"instance-1", ["instance-1"], ...]


class TestInstanceId:
    @pytest.mark.parametrize("instance_id", HOSTILE_IDS, ids=ascii)
    def test_an_id_that_could_reach_another_route_is_rejected(self, instance_id: str) -> None:
        with pytest.raises(InvalidArgumentError, match="instance_id"):
            check_instance_id(instance_id)

    def test_an_id_is_kept_as_it_is(self) -> None:
        for instance_id in FRIENDLY_IDS:
            assert check_instance_id(instance_id) == instance_id

    @pytest.mark.parametrize("check", [check_instance_id, check_body_id])
    def test_other_types_are_rejected(self, check: Callable[[Any], str]) -> None:
        for instance_id in NO_STRINGS:
            with pytest.raises(InvalidArgumentError, match="instance_id must be a string"):
                check(instance_id)

    @given(ANY_TEXT)
    @example("delete-all")
    @settings(max_examples=300, derandomize=True)
    def test_an_accepted_id_is_one_segment_and_no_route(self, text: str) -> None:
        try:
            passed = check_instance_id(text)
        except InvalidArgumentError:
            return
        assert passed == text
        assert passed.isascii()
        assert not set(passed) & set("/?#%\\@;&= \t\r\n\0")
        assert passed.strip(".")
        assert passed.lower() not in {"start", "stop", "restart", "stop-all", "delete-all"}

    def test_a_member_of_a_str_enum_is_its_value(self) -> None:
        class Known(str, enum.Enum):  # noqa: UP042  (not StrEnum: that one formats as its value)
            MINE = "instance-1"

        assert f"/{check_instance_id(Known.MINE)}" == "/instance-1"

    def test_the_error_truncates_a_long_id(self) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            check_instance_id("/" * 1_000_000)
        assert len(str(caught.value)) < 300


class TestBodyId:
    @pytest.mark.parametrize("instance_id", ["", " ", "\n\t"])
    def test_an_empty_id_is_rejected(self, instance_id: str) -> None:
        with pytest.raises(InvalidArgumentError, match="empty"):
            check_body_id(instance_id)

    @given(ANY_TEXT)
    @example("\ud800")
    @settings(max_examples=200, derandomize=True)
    def test_an_accepted_id_can_be_sent(self, text: str) -> None:
        try:
            passed = check_body_id(text)
        except InvalidArgumentError:
            assert not text.strip() or any("\ud800" <= each <= "\udfff" for each in text)
            return
        assert passed == text
        passed.encode()


class TestModelId:
    @pytest.mark.parametrize(
        ("model_id", "expected"),
        [
            ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama--Llama-3.1-8B-Instruct"),
            ("meta-llama--Llama-3.1-8B-Instruct", "meta-llama--Llama-3.1-8B-Instruct"),
            ("gpt2", "gpt2"),
        ],
    )
    def test_both_spellings_are_accepted(self, model_id: str, expected: str) -> None:
        assert check_model_id(model_id) == expected

    @pytest.mark.parametrize(
        "model_id",
        [
            "",
            " ",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "a//b",
            "../x",
            "a/..",
            ".",
            "..",
            "a/.",
            "a b",
            "a?b",
            "a%2fb",
            "ä",
        ],
    )
    def test_an_invalid_model_id_is_rejected(self, model_id: str) -> None:
        with pytest.raises(InvalidArgumentError, match="model_id"):
            check_model_id(model_id)

    def test_other_types_are_rejected(self) -> None:
        for model_id in NO_STRINGS:
            with pytest.raises(InvalidArgumentError, match="model_id must be a string"):
                check_model_id(model_id)

    @given(st.from_regex(r"[A-Za-z0-9._]{1,12}/[A-Za-z0-9._]{1,12}", fullmatch=True))
    @settings(max_examples=100, derandomize=True)
    def test_the_two_spellings_are_one_model(self, hf_name: str) -> None:
        assert to_hf_name(to_model_id(hf_name)) == hf_name
        assert "/" not in to_model_id(hf_name)


class TestStart:
    def test_good_arguments(self) -> None:
        assert check_start(
            "a/b", "NVIDIA_H100_1", context_length=8192, num_workers=8, billing_interval="per_hour"
        ) == InstanceArgs(
            model_id="a--b",
            hardware_type_id="NVIDIA_H100_1",
            context_length=8192,
            num_workers=8,
            billing_interval="per_hour",
        )
        assert check_start(
            "a/b", None, context_length=None, num_workers=1, billing_interval="per_minute"
        ) == InstanceArgs(model_id="a--b", billing_interval="per_minute")

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            ({"model_id": ""}, "model_id is empty"),
            ({"hardware_type_id": ""}, "hardware_type_id is empty"),
            ({"hardware_type_id": 5}, "hardware_type_id must be a string"),
            ({"hardware_type_id": "a/b"}, "hardware_type_id 'a/b'"),
            ({"num_workers": 0}, "1 to 8, not 0"),
            ({"num_workers": 9}, "1 to 8, not 9"),
            ({"num_workers": -1}, "1 to 8, not -1"),
            ({"num_workers": 1.0}, "whole number, not 1.0"),
            ({"num_workers": True}, "whole number, not True"),
            ({"num_workers": "1"}, "whole number, not '1'"),
            ({"num_workers": None}, "whole number, not None"),
            ({"context_length": 0}, "at least 1 token, not 0"),
            ({"context_length": -8192}, "at least 1 token, not -8192"),
            ({"context_length": 8192.0}, "whole number"),
            ({"context_length": float("nan")}, "whole number"),
            ({"context_length": "8192"}, "whole number"),
            ({"billing_interval": "hourly"}, "per_minute, per_hour, not 'hourly'"),
            ({"billing_interval": "PER_MINUTE"}, "not 'PER_MINUTE'"),
            ({"billing_interval": None}, "not None"),
            ({"billing_interval": ["per_hour"]}, "billing_interval"),
        ],
    )
    def test_the_error_says_what_is_allowed(self, bad: dict[str, Any], said: str) -> None:
        arguments: dict[str, Any] = {
            "model_id": "a/b",
            "hardware_type_id": None,
            "context_length": None,
            "num_workers": 1,
            "billing_interval": "per_minute",
            **bad,
        }
        with pytest.raises(InvalidArgumentError, match=said) as caught:
            check_start(arguments.pop("model_id"), arguments.pop("hardware_type_id"), **arguments)
        assert next(iter(bad)) in str(caught.value)
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ("NVIDIA_L4_1, NVIDIA_L40S_1", "is not one id. Pass a list: ['NVIDIA_L4_1', 'NVIDIA_L40S_1']"),
        (["NVIDIA_L4_1", "cheapest"], "'cheapest' already considers all hardware types"),
        ("Cheapest", "must be 'cheapest' in lowercase, not 'Cheapest'"),
        ({"NVIDIA_L4_1"}, "an id, a list of ids in order of preference, or 'cheapest'"),
    ],
)
def test_bad_hardware(hardware: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_hardware(hardware)
    assert message in str(caught.value)
