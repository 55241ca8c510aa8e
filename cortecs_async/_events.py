"""The events this package logs.

An event's name, level, and fields are stable; its message is for people and may change.
"""

from __future__ import annotations

import enum
import logging
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING
from typing import Self


class Event(enum.Enum):
    """An event: its name, level, message template and stable fields.

    The part of the name before the dot is the logger below `cortecs_async`.

    Attributes:
        level: Level of the record.
        message: Template with the fields and with values used only in the message.
        fields: Names of the record's attributes, without their prefix.
        logger: Logger of the event.
    """

    LEASE_STARTED = "lease.started", INFO, "Started instance %(instance_id)s", "instance_id model request_id"
    LEASE_FOUND = "lease.found", INFO, "Using existing instance %(instance_id)s", "instance_id model"
    LEASE_RESTARTED = "lease.restarted", INFO, "Restarted instance %(instance_id)s", "instance_id model"
    LEASE_RUNNING = (
        "lease.running",
        INFO,
        "Instance %(instance_id)s is running %(model)s at %(base_url)s",
        "instance_id model base_url seconds",
    )
    LEASE_ENDED = (
        "lease.ended",
        INFO,
        "Released %(name)s, which is %(goal)s: %(receipt)s",
        "instance_id model goal seconds cost currency",
    )
    LEASE_NOT_RELEASED = (
        "lease.not_released",
        CRITICAL,
        "Could not release %(name)s: %(error)r",
        "instance_id model error_type",
    )
    LEASE_ABANDONED = (
        "lease.abandoned",
        CRITICAL,
        "Not released before the event loop ended: %(name)s. %(who_releases)s.",
        "instance_id model",
    )
    LEASE_UNAWAITED = (
        "lease.unawaited",
        WARNING,
        "Releasing %(name)s in the background: its block did not end normally",
        "instance_id model",
    )
    LEASE_LOST = "lease.lost", WARNING, "%(reason)s", "instance_id"
    LEASE_EXPIRED = "lease.expired", WARNING, "%(reason)s", "instance_id"
    LEASE_UNREADABLE = (
        "lease.unreadable",
        INFO,
        "Could not get the status of instance %(instance_id)s: %(error)s",
        "instance_id error_type",
    )
    LEASE_INTERRUPTED = "lease.interrupted", WARNING, "Interrupted: %(consequence)s"
    LEASE_START_RETRY = (
        "lease.start_retry",
        INFO,
        "Retrying the start request for %(model)s in %(wait).1f s: %(error)s",
        "model attempt wait status request_id",
    )
    LEASE_START_UNANSWERED = (
        "lease.start_unanswered",
        WARNING,
        "No response to a start request; searching for the instance: %(error)s",
        "model status request_id",
    )
    LEASE_START_REPEATED = (
        "lease.start_repeated",
        WARNING,
        "Resending the start request for %(model)s",
        "model",
    )
    LEASE_START_NOT_SEEN = (
        "lease.start_not_seen",
        WARNING,
        (
            "The response to the start request for %(model)s was lost, and no instance has appeared yet. "
            "If it appears later, the reaper or `cortecs-async sweep` releases it."
        ),
        "model",
    )
    LEASE_TAG_NOT_RETURNED = (
        "lease.tag_not_returned",
        WARNING,
        (
            "The service returned a context length different from the one sent for instance "
            "%(instance_id)s. The client no longer tags its start requests."
        ),
        "instance_id model",
    )
    LEASE_ADOPTED = (
        "lease.adopted",
        INFO,
        "Adopted instance %(instance_id)s: the response to its start request was lost",
        "instance_id model",
    )
    LEASE_LOOK_FAILED = (
        "lease.look_failed",
        WARNING,
        "Could not search for the instance of an unresolved start: %(error)s",
        "model error_type",
    )
    LEASE_TEARDOWN_RETRY = (
        "lease.teardown_retry",
        INFO,
        "Releasing instance %(instance_id)s: %(step)s failed, continuing in %(wait).1f s: %(error)s",
        "instance_id step wait error_type request_id",
    )
    LEASE_HARDWARE = (
        "lease.hardware",
        INFO,
        "Using %(hardware_type_id)s for %(model)s: %(reason)s",
        "model hardware_type_id reason",
    )
    LEASE_HARDWARE_REFUSED = (
        "lease.hardware_refused",
        INFO,
        "Nothing was started on %(hardware_type_id)s: %(error)s",
        "model hardware_type_id status request_id",
    )
    LEASE_WAITING = (
        "lease.waiting",
        INFO,
        "No capacity for %(hardware)s. Waiting for it for up to %(seconds).0f s.",
        "model seconds",
    )
    LEASE_CAPACITY_UNREADABLE = (
        "lease.capacity_unreadable",
        WARNING,
        "Could not fetch the available hardware types: %(error)s",
        "error_type request_id",
    )
    LEASE_NOT_READY = (
        "lease.not_ready",
        INFO,
        "The endpoint of instance %(instance_id)s does not answer yet: %(reason)s",
        "instance_id",
    )
    LEASE_READY_UNANSWERED = (
        "lease.ready_unanswered",
        WARNING,
        (
            "The endpoint of instance %(instance_id)s lists its models but rejects test requests "
            "(%(reason)s). Continuing without an answer."
        ),
        "instance_id",
    )
    LEASE_NOT_PROBED = (
        "lease.not_probed",
        WARNING,
        "%(problem)s Instances are not tested before use. To hide this warning, pass ready='status'.",
    )
    LEASE_NO_PRICES = "lease.no_prices", INFO, "Could not fetch the price list: %(error)s", "error_type"

    BACKGROUND_FAILED = (
        "background.failed",
        ERROR,
        "Background work failed: %(work)s. Blocks continue, and instances are still released.",
        "work",
    )

    HTTP_REQUEST = (
        "http.request",
        DEBUG,
        "%(method)s %(path)s: %(outcome)s in %(seconds).2f s",
        "method path status seconds attempt request_id",
    )
    HTTP_RETRY = (
        "http.retry",
        INFO,
        "Retrying in %(wait).1f s: %(error)s",
        "method path status wait attempt request_id",
    )
    HTTP_OUTAGE = "http.outage", WARNING, "%(problem)s. Retrying.", "method path"

    HTTP_UNREADABLE_ENTRY = (
        "http.unreadable_entry",
        WARNING,
        "Skipping an entry that could not be parsed in GET %(path)s (id: %(entry_id)r): %(problem)s",
        "path entry_id",
    )

    CONFIG_UNKNOWN_KEY = (
        "config.unknown_key",
        WARNING,
        "Ignoring %(key)r in %(file)s. %(advice)s",
        "file key",
    )
    CONFIG_INFERENCE_KEY = (
        "config.inference_key",
        WARNING,
        (
            "%(problem)s Without a key, inst.openai() fails after billing has started. "
            "If you pass api_key= yourself, hide this warning with require_key=False."
        ),
    )

    HTTP_ENVIRONMENT_IGNORED = (
        "http.environment_ignored",
        WARNING,
        "Ignoring an unusable entry in %(variable)s: %(entry)r",
        "variable entry",
    )

    WATCH_FAILED = (
        "watch.failed",
        WARNING,
        "Polling failed, retrying in %(wait).1f s: %(error)s",
        "wait failures error_type request_id",
    )
    WATCH_RECOVERED = (
        "watch.recovered",
        INFO,
        "Polling works again after %(failures)d failures",
        "failures",
    )

    GUARD_ORPHANS = (
        "guard.orphans",
        WARNING,
        (
            "Dead processes left instances or unresolved starts behind: %(count)d. "
            "Run `cortecs-async sweep` or client.sweep()."
        ),
        "count",
    )
    GUARD_NO_JOURNAL = (
        "guard.no_journal",
        WARNING,
        (
            "Cannot write the journal in %(directory)s (%(error)s). "
            "If this machine dies, `cortecs-async sweep` cannot find its instances. "
            "Set CORTECS_STATE_DIR to a directory of your own."
        ),
        "directory",
    )
    GUARD_FILES_IGNORED = (
        "guard.files_ignored",
        WARNING,
        "Ignoring %(files)s in %(directory)s: %(problem)s",
        "directory files",
    )
    GUARD_NO_REAPER = (
        "guard.no_reaper",
        WARNING,
        (
            "The reaper is not running (%(error)s). "
            "If this process is killed, its instances run until you run `cortecs-async sweep`."
        ),
    )
    GUARD_REAPER_UNREACHABLE = (
        "guard.reaper_unreachable",
        WARNING,
        (
            "The reaper cannot reach the service: %(problem)s. "
            "If this process is killed, its instances run until you run `cortecs-async sweep`."
        ),
    )
    GUARD_REAPER_REPLACED = "guard.reaper_replaced", WARNING, "Starting another reaper: %(reason)s"
    GUARD_REAPER_GIVEN_UP = (
        "guard.reaper_given_up",
        CRITICAL,
        (
            "The reaper died repeatedly. Continuing without it. "
            "If this process is killed, its instances run until you run `cortecs-async sweep`."
        ),
    )
    GUARD_SWEEP = "guard.sweep", INFO, "%(text)s"
    GUARD_SWEEP_UNWRITTEN = (
        "guard.sweep_unwritten",
        WARNING,
        "Cannot write the journal %(journal)s: %(error)s",
        "journal",
    )

    COSTS_UNWRITTEN = (
        "costs.unwritten",
        WARNING,
        (
            "Cannot record costs in %(directory)s (%(error)s). Instances are still released, "
            "but `cortecs-async costs` may not show their costs."
        ),
        "directory",
    )

    SHARED_OWNER = "shared.owner", INFO, "%(what)s"
    SHARED_PROBLEM = "shared.problem", WARNING, "%(what)s"

    BATCH_RETRY = (
        "batch.retry",
        INFO,
        "Retrying request %(custom_id)s in %(wait).1f s: %(reason)s",
        "custom_id wait",
    )
    BATCH_RETRY_LAST = (
        "batch.retry_last",
        INFO,
        "Retrying request %(custom_id)s after all others: %(reason)s",
        "custom_id",
    )
    BATCH_DOUBT = (
        "batch.doubt",
        INFO,
        "Instance %(instance_id)s may not be working: %(reason)s",
        "instance_id",
    )
    BATCH_INSTANCE_OUT = (
        "batch.instance_out",
        WARNING,
        "Continuing without one of %(instances)d instances: %(error)s",
        "error_type",
    )
    BATCH_ERROR = "batch.error", ERROR, "Another error in the batch: %(error)s", "error_type"

    MAP_ITEMS_NOT_CLOSED = (
        "map.items_not_closed",
        ERROR,
        "Closing the items of a map whose results were dropped raised %(error)r",
        "error_type",
    )

    TELEMETRY_FAILED = (
        "telemetry.failed",
        WARNING,
        "telemetry.%(call)s raised. Leases are not affected. Further errors are not logged.",
        "call",
    )

    level: int
    message: str
    fields: tuple[str, ...]
    logger: logging.Logger

    def __new__(cls, value: str, level: int, message: str, fields: str = "") -> Self:
        event = object.__new__(cls)
        event._value_ = value
        event.level, event.message, event.fields = level, message, tuple(fields.split())
        event.logger = logging.getLogger(f"cortecs_async.{value.partition('.')[0]}")
        return event
