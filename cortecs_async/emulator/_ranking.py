"""Rerank and score texts by similarity. In the emulator, every model supports both.

The score is the share of words that two texts have in common.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cortecs_async.emulator._account import Account
from cortecs_async.emulator._generation import tokenize
from cortecs_async.emulator._inference import check_model, running_instance, token_limit
from cortecs_async.emulator._instance import Instance
from cortecs_async.emulator._messages import (
    ApiError,
    Params,
    Request,
    Response,
    integer_field,
    json_object,
    json_response,
    required_string,
)

_MAX_TEXTS: Final = 2048


def rerank(account: Account, request: Request, params: Params, now: float) -> Response:
    """Handle POST /rerank: sort documents by their similarity to a query."""
    instance = running_instance(account, params["instance_id"], now)
    body = json_object(request)
    query = required_string(body, "query")
    documents = _texts(body, "documents")
    # 0 means all, as with vLLM.
    top_n = integer_field(body, "top_n", least=0) or len(documents)
    model = check_model(instance, required_string(body, "model"))
    pairs = [(query, document) for document in documents]
    tokens = _count_tokens(instance, pairs)
    scores = [_score(*pair) for pair in pairs]
    order = sorted(range(len(documents)), key=lambda index: (-scores[index], index))
    results = [
        {"index": index, "document": {"text": documents[index]}, "relevance_score": scores[index]}
        for index in order[:top_n]
    ]
    account.answers += 1
    answer = {
        "id": f"rerank-{instance.instance_id}-{account.answers}",
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": results,
    }
    return json_response(200, answer, instance_id=instance.instance_id)


def score(account: Account, request: Request, params: Params, now: float) -> Response:
    """Handle POST /score: score pairs of texts."""
    instance = running_instance(account, params["instance_id"], now)
    body = json_object(request)
    pairs = _pairs(_texts(body, "text_1"), _texts(body, "text_2"))
    model = check_model(instance, required_string(body, "model"))
    tokens = _count_tokens(instance, pairs)
    account.answers += 1
    answer = {
        "id": f"score-{instance.instance_id}-{account.answers}",
        "object": "list",
        "created": int(account.settings.epoch + now),
        "model": model,
        "data": [
            {"index": index, "object": "score", "score": _score(*pair)} for index, pair in enumerate(pairs)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json_response(200, answer, instance_id=instance.instance_id)


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    value = body.get(name)
    texts = [value] if isinstance(value, str) and name != "documents" else value
    if (
        not isinstance(texts, list)
        or not 1 <= len(texts) <= _MAX_TEXTS
        or not all(isinstance(each, str) for each in texts)
    ):
        kinds = "a list of strings" if name == "documents" else "a string or a list of strings"
        raise ApiError(400, f"{name} must be {kinds}, with 1 to {_MAX_TEXTS} items.")
    return texts


def _pairs(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    if len(first) not in (1, len(second)):
        raise ApiError(
            400,
            f"text_1 must be one text or as many as text_2, but it has {len(first)} and text_2 has "
            f"{len(second)}.",
        )
    return list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))


def _count_tokens(instance: Instance, pairs: Sequence[tuple[str, str]]) -> int:
    """Count the tokens of all pairs. Each pair must fit into the context."""
    counts = [len(tokenize(first)) + len(tokenize(second)) for first, second in pairs]
    for tokens in counts:
        token_limit(instance, tokens, 0)
    return sum(counts)


def _score(first: str, second: str) -> float:
    one, other = ({token.strip() for token in tokenize(text.lower())} for text in (first, second))
    return len(one & other) / len(one | other) if one | other else 0.0
