"""Batch jobs: run a file of requests on an instance that runs only as long as needed."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from cortecs_async import AsyncCortecs

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
REVIEWS = {
    "order-1": "Arrived a day early, and it works.",
    "order-2": "The box was empty.",
    "order-3": "Does what it says, but the manual is in Finnish.",
}
SENTIMENT = {
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "sentiment": {"type": "string", "enum": ["positive", "negative", "mixed"]},
    },
    "required": ["summary", "sentiment"],
    "additionalProperties": False,
}


def write_requests(path: Path) -> None:
    """Write one request per line, in the format of OpenAI's Batch API."""
    wanted = {"type": "json_schema", "json_schema": {"name": "review", "schema": SENTIMENT, "strict": True}}
    with path.open("w", encoding="utf-8") as file:
        for order, review in REVIEWS.items():
            body = {"messages": [{"role": "user", "content": review}], "response_format": wanted}
            line = {"custom_id": order, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


async def main(folder: Path) -> None:
    """Classify the reviews, using files in this folder."""
    requests, answers = folder / "requests.jsonl", folder / "answers.jsonl"
    write_requests(requests)
    async with AsyncCortecs() as client:
        # If the run is interrupted, the same call continues it and skips answered requests.
        report = await client.run_batch(requests, answers, MODEL, max_cost=5, ordered=True)
    for line in answers.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        found = json.loads(answer["response"]["body"]["choices"][0]["message"]["content"])
        print(f"{answer['custom_id']}: {found['sentiment']}, {found['summary']}")
    print(f"{report.succeeded} of {report.total} answered, {report.completion_tokens} tokens written")
    print(f"It cost about {report.cost} {report.currency}.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            asyncio.run(main(Path(temporary)))
