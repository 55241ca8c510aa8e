"""Say which name in a rejected request does not exist, and which similar names do.

It is undocumented how the service rejects an unknown model, hardware type, or instance, and what the message
is. So its lists decide: an error message is replaced only if a list fetched after the rejection shows that
the name is missing. This never changes an outcome, only its message.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Final

import anyio

from .._aio.synchronization import SingleFlight
from .._errors import (
    BadRequestError,
    NotFoundError,
    PriceUnknownError,
    UnprocessableEntityError,
)
from .._hints import did_you_mean
from .._http.messages import START_PATH, Call, Reply
from .catalog import Model
from .listing import Listing, existing_ids
from .model_ids import to_hf_name, to_model_id
from .resources import HardwareTypes, ListReader, Models, Send
from .validation import ROUTES

if TYPE_CHECKING:
    from .domain import Instance
    from .expected import ExpectedInstances

# Seconds for the lists. An error must not be delayed long to improve its message.
_TIMEOUT = 3.0

_REJECTIONS: Final = (BadRequestError, NotFoundError, UnprocessableEntityError)

_MAX_SUGGESTIONS = 3

# Shorter names are contained in too many others.
_MIN_CONTAINED = 3

# For `difflib`: allows one or two typing errors, but not a different id of the same form.
_MIN_SIMILARITY = 0.7


def no_instance_message(instance_id: str, existing: Collection[str]) -> str:
    """Return the sentence for an instance that does not exist."""
    advice = _did_you_mean(instance_id, existing) or "client.instances.list() lists your instances."
    return f"There is no instance {instance_id}. {advice}"


def _no_model(name: str, existing: Collection[str]) -> str:
    advice = _did_you_mean(name, existing) or "client.models.list() lists the models."
    return f"There is no model {name}. {advice}"


def wrong_hardware_message(model: str, hardware: str, usable: Iterable[str]) -> str:
    """Return the sentence for a hardware type that a model does not run on."""
    return f"Model {model} does not run on {hardware}. Choose one of: {', '.join(usable)}."


def too_long_message(context_length: int, model: str, longest: int, hardware: str) -> str:
    """Return the sentence for a context length that is too long for a model on a hardware type."""
    return (
        f"context_length {context_length} is too long: {model} supports at most {longest} tokens on "
        f"{hardware}."
    )


def _did_you_mean(name: str, known: Collection[str]) -> str:
    return did_you_mean(nearest(name, known))


def nearest(name: str, known: Collection[str]) -> list[str]:
    """Return the known names most similar to a name, at most three, the best first.

    Names that contain it, under any owner (`owner/name`); otherwise, names with a similar spelling.
    """
    names = {_key(each): each for each in known}
    wanted = _key(name)
    last = wanted.rpartition("/")[2]
    containing = [each for each in names if len(last) >= _MIN_CONTAINED and last in each]
    found = difflib.get_close_matches(
        wanted, containing or names, n=_MAX_SUGGESTIONS, cutoff=0.0 if containing else _MIN_SIMILARITY
    )
    return [names[each] for each in found]


def _key(name: str) -> str:
    return name.replace("--", "/", 1).casefold()


class UnknownNames:
    """Explains one client's rejected requests.

    Args:
        send: Sends a request.
        reader: Fetches the lists.
        expected: The instances that may not be listed yet.
        clean: Returns a message on one line and without secrets, because it quotes names from the service.
    """

    def __init__(
        self, send: Send, reader: ListReader, expected: ExpectedInstances, clean: Callable[[str], str] = str
    ) -> None:
        self._expected = expected
        self._clean = clean

        async def send_once(call: Call) -> Reply:
            call = copy(call)
            call.retried = False
            return await send(call)

        async def list_instances() -> Listing[Instance]:
            from .wire import decode_instances  # noqa: PLC0415  (the instances are slow to import)

            reply = await send_once(Call(method="GET", path="/instances/"))
            return reader.read(reply, decode_instances)

        models = Models(send_once, reader)
        self._get_model = models.get
        # Many requests may be rejected at the same time, so they share a list.
        self._models = SingleFlight(models.list)
        self._hardware_types = SingleFlight(HardwareTypes(send_once, reader).list)
        self._instances = SingleFlight(list_instances)

    async def explain(self, error: BaseException, body: Mapping[str, Any]) -> None:
        """Replace the message of an error if a name in the request does not exist.

        Args:
            error: Any error. Only a rejection of the request or a missing price is changed.
            body: The body of the request.
        """
        if isinstance(error, PriceUnknownError):
            path = START_PATH  # an unknown hardware type has no price
        elif isinstance(error, _REJECTIONS) and not error.outcome_unknown:
            path = error.path
        else:
            # If an earlier attempt may have worked, that is more important than the last attempt.
            return
        message = ""
        with anyio.move_on_after(_TIMEOUT):
            try:
                message = await self._explanation(path, body)
            except Exception:  # noqa: BLE001  (the rejection must be raised, whatever happens to the list)
                return
        if message:
            error.args = (self._clean(message),)

    async def _explanation(self, path: str, body: Mapping[str, Any]) -> str:
        kind, _, name = path.removeprefix("/").partition("/")
        if path == START_PATH:
            return await self._explain_start(body)
        if kind == "models" and name:
            return await self._explain_model(name)
        if kind == "instances":
            instance_id = body.get("instance_id") if name in ROUTES else name
            if isinstance(instance_id, str) and instance_id:
                return await self._explain_instance(instance_id)
        return ""

    async def _explain_instance(self, instance_id: str) -> str:
        instances = await self._instances.get()
        existing = existing_ids(instances)
        # An instance that was just started may not be listed yet.
        is_expected = self._expected.visible_at(instance_id) > anyio.current_time()
        if instance_id in existing or is_expected or _has_nameless(instances):
            return ""
        return no_instance_message(instance_id, existing)

    async def _explain_model(self, model_id: str) -> str:
        models = await self._models.get()
        names = [each.hf_name or to_hf_name(each.model_id) for each in models]
        listed = {*names, *(each.model_id for each in models), *_unreadable(models)}
        # An empty list proves nothing: a service without models is probably broken.
        if not listed or to_model_id(model_id) in map(to_model_id, listed) or _has_nameless(models):
            return ""
        return _no_model(to_hf_name(model_id), names)

    async def _explain_start(self, body: Mapping[str, Any]) -> str:
        model_id, hardware, context = (
            body.get(each) for each in ("model_id", "hardware_type_id", "context_length")
        )
        if not isinstance(model_id, str):
            return ""
        if message := await self._explain_model(model_id):
            return message
        model = await self._get_model(model_id)
        name = to_hf_name(model_id)
        if hardware is not None and model.hardware_configs and hardware not in model.hardware_configs:
            return await self._explain_hardware(name, hardware, model)
        on = hardware or model.recommended_config
        config = model.hardware_configs.get(on or "")
        longest = config.max_context_length if config else None
        if context is None or longest is None or context <= longest:
            return ""
        return too_long_message(context, name, longest, str(on))

    async def _explain_hardware(self, name: str, hardware: str, model: Model) -> str:
        types = await self._hardware_types.get()
        listed = {*(each.hardware_type_id for each in types), *_unreadable(types)}
        if hardware in listed or not listed or _has_nameless(types):
            return wrong_hardware_message(name, hardware, model.hardware_configs)
        usable = model.hardware_configs
        advice = _did_you_mean(hardware, usable) or f"{name} runs on {', '.join(usable)}."
        return f"There is no hardware type {hardware}. {advice}"


def _has_nameless(listing: Listing[Any]) -> bool:
    """Return whether an entry cannot be parsed at all: it may be the one that seems to be missing."""
    return any(each.entry_id is None for each in listing.unreadable)


def _unreadable(listing: Listing[Any]) -> set[str]:
    """Return the ids of the entries that cannot be parsed, which exist too."""
    return {each.entry_id for each in listing.unreadable if each.entry_id is not None}
