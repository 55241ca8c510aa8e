"""The two spellings of a model: the service's and the one on Hugging Face."""

from __future__ import annotations


def to_model_id(name: str) -> str:
    """Return the service's spelling of a model: `a--b` for the Hugging Face name `a/b`."""
    return name.replace("/", "--")


def to_hf_name(model_id: str) -> str:
    """Return the Hugging Face spelling of a model, `a/b`, which the inference endpoint uses."""
    # A Hugging Face name has one slash and no "--", so the first "--" stands for the slash.
    return model_id.replace("--", "/", 1)
