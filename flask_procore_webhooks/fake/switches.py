"""What tests turn: the switches of the fake, and its clock.

Procore's documentation (https://developers.procore.com/documentation) leaves these
points undefined, or states them in two ways. A default is the most probable behaviour.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any
from typing import Final

#: The accepted values of switches that accept only some.
CHOICES: Final[dict[str, tuple[object, ...]]] = {
    "filter_by": ("event", "delivery"),
    "order": ("newest", "oldest"),
    "delivery_payload": ("sent", "v2"),
    "error_body": ("object", "errors", "text"),
    "patch_version": (200, 400),
    "fresh_deliveries": (200, 404),
    "trigger_case": ("upper", "lower"),
    "action_case": ("upper", "lower"),
    "company_project": ("null", "absent"),
    "record_ids": ("number", "text"),
    "pause_scope": ("hook", "url"),
    "flush_status": ("discarded", "failed"),
    "limit_headers": ("spike", "nearest", "none"),
    "retry_after": ("both", "reset", "retry-after"),
    "limit_by": ("app", "company"),
}

TOKEN_ERROR: Final = (
    401,
    {
        "error": "invalid_client",
        "error_description": "Client authentication failed.",
    },
)


@dataclass(slots=True)
class Switches:
    """How the fake behaves; every switch may be changed at any time.

    :raises ValueError: the switch does not accept the value.
    """

    # The list of deliveries

    #: Whether ``filter[start]`` includes that day.
    filter_start_inclusive: bool = True
    #: Whether ``filter[end]`` includes that day.
    filter_end_inclusive: bool = True
    #: Hours that the zone of the filter's days is ahead of UTC.
    filter_zone: float = 0
    #: The time that the filter compares: that of the ``"event"``, or of the
    #: ``"delivery"``, which is that of the last attempt.
    filter_by: str = "event"
    #: Order without ``sort``: ``"newest"`` or ``"oldest"`` first. The names that
    #: ``sort`` takes are undocumented: any name sorts by the time of the event, and
    #: ``-`` before it puts the newest first.
    order: str = "newest"
    #: The payload of a row: as it was ``"sent"``, or always in the shape of ``"v2"``.
    delivery_payload: str = "sent"
    #: Whether the ``id`` of a v4.0 payload is the ``ulid`` of the v2.0 payload.
    same_id: bool = True
    #: Days for which a delivery is listed.
    listed_days: float = 28
    #: The status for a hook that never had a delivery: 200 with no rows, or 404.
    fresh_deliveries: int = 200
    #: Whether a discarded row keeps its id. If not, a new row replaces it.
    discards_same_row: bool = True

    # Answers

    #: The body of an error: an ``"object"`` ``{"error": {"code", "message",
    #: "details"}}``, ``"errors"`` for ``{"errors": message}``, or a ``"text"``.
    error_body: str = "object"
    #: The status of a PATCH that changes ``payload_version``: 400, or 200.
    patch_version: int = 400
    #: The status of a call without the header ``Procore-Company-Id``.
    missing_company: int = 400
    #: Status and body of a refused token request.
    token_error: tuple[int, Any] = TOKEN_ERROR
    #: Seconds of the fake's clock for which a token is valid.
    token_seconds: float = 5400
    #: Whether answers show the last five characters of ``Authorization`` only.
    masks_authorization: bool = True
    #: The case of ``event_type`` in the answers about triggers.
    trigger_case: str = "upper"
    #: The case of ``actions`` in the list of resources.
    action_case: str = "lower"
    #: Ids of records in the calls of v1.x: a ``"number"`` or a ``"text"``.
    record_ids: str = "number"
    #: Whether the list of a company's hooks requires ``namespace``.
    namespace_required: bool = True
    #: Whether the API refuses a ``destination_url`` without TLS, except on loopback.
    https_required: bool = True
    #: Rows of a page, if ``per_page`` is left out.
    default_per_page: int = 10
    #: The most triggers of a bulk call.
    bulk_limit: int = 500
    #: The most rows of a page, whatever ``per_page`` says.
    most_per_page: int = 100
    #: Whether a list has the header ``Link``.
    sends_link: bool = True
    #: Whether a list has the headers ``Total`` and ``Per-Page``.
    sends_total: bool = True

    # The sender

    #: The factor between two waits.
    backoff: float = 2.0
    #: Seconds of the first wait.
    first_wait: float = 1
    #: The most seconds of a wait.
    longest_wait: float = 3600
    #: Seconds of continuous failure after which the queue is flushed.
    gives_up_after: float = 12 * 3600
    #: The largest random part that is added to a wait; 0.5 for up to a half.
    jitter: float = 0
    #: Seconds after which an attempt has failed.
    timeout: float = 5.0
    #: What a failure pauses: its ``"hook"``, or every hook of its ``"url"``.
    pause_scope: str = "hook"
    #: Whether disabling a hook keeps its queue. If not, the queue is flushed.
    pause_keeps_queue: bool = True
    #: Whether a flush disables the hook.
    disables_after_flush: bool = False
    #: The status of a row after a flush.
    flush_status: str = "discarded"

    #: Whether ``destination_headers`` may name other headers than ``Authorization``.
    sends_other_headers: bool = False
    #: A header that has the id of the delivery; ``None`` for no such header.
    delivery_header: str | None = None
    #: ``project_id`` of a company's event in v2.0 and v3.0: ``"null"`` or ``"absent"``.
    company_project: str = "null"

    # Changes

    #: Events for each change of a record: different ids, the same timestamp.
    events_per_change: int = 1
    #: Seconds after a change in which a read still finds the state before it.
    stale_seconds: float = 0
    #: The user of a change that no call of the API made.
    user_id: str = "1001"
    #: The user of a change that a call of the API made: the service account.
    app_user_id: str = "90001"

    # Rate limits

    #: Calls in an hour; ``None`` for no limit.
    hourly_limit: int | None = 3600
    #: Calls in the short window; ``None`` for no limit.
    spike_limit: int | None = 25
    #: Seconds of the short window.
    spike_seconds: float = 10
    #: The window that the headers describe: ``"spike"``, until the hourly limit is
    #: nearly used up, the ``"nearest"`` to its limit, or ``"none"``.
    limit_headers: str = "spike"
    #: What a 429 answer has: ``X-Rate-Limit-Reset`` (``"reset"``), ``Retry-After``
    #: (``"retry-after"``), or ``"both"``.
    retry_after: str = "both"
    #: What shares a limit: the calls of the ``"app"``, or those for one ``"company"``.
    limit_by: str = "app"
    #: Seconds by which ``Date`` and the reset times are ahead of the fake's clock.
    clock_offset: float = 0
    #: ``Retry-After`` of the 503 that answers every API call; 0 for no such answer.
    busy: int = 0

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the switch; refuse a value that it does not have."""
        accepted = CHOICES.get(name)
        if accepted is not None and value not in accepted:
            listed = ", ".join(map(repr, accepted))
            raise ValueError(f"{name} is one of {listed}, not {value!r}")
        object.__setattr__(self, name, value)


class Clock:
    """A clock that tests move.

    :param now: the time at which it stands. ``None`` lets it run from the real time.
    """

    def __init__(self, now: datetime | None = None) -> None:
        self._lock = threading.Lock()
        self._base = datetime.now(timezone.utc) if now is None else aware(now)
        self._since = time.monotonic() if now is None else None

    def __repr__(self) -> str:
        """Return the current time, for messages of tests."""
        return f"<Clock {self.now().isoformat()}>"

    @property
    def running(self) -> bool:
        """Whether the clock runs with the real time."""
        return self._since is not None

    def now(self) -> datetime:
        """Return the current time of the fake, in UTC."""
        with self._lock:
            return self._now()

    def set(self, when: datetime) -> None:
        """Move the clock to ``when``, a time with a zone; it runs on if it ran."""
        with self._lock:
            self._base = aware(when)
            if self._since is not None:
                self._since = time.monotonic()

    def advance(
        self,
        seconds: float = 0,
        *,
        minutes: float = 0,
        hours: float = 0,
        days: float = 0,
    ) -> None:
        """Move the clock forward; nothing else happens.

        It can serve as the ``sleep`` of a client.
        """
        step = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        with self._lock:
            self._base += step

    def run(self) -> None:
        """Let the clock run with the real time, from the time that it shows."""
        with self._lock:
            self._base = self._now()
            self._since = time.monotonic()

    def stop(self) -> None:
        """Let the clock stand at the time that it shows."""
        with self._lock:
            self._base = self._now()
            self._since = None

    def _now(self) -> datetime:
        if self._since is None:
            return self._base
        return self._base + timedelta(seconds=time.monotonic() - self._since)


def aware(when: datetime) -> datetime:
    """Return the time in UTC.

    :raises ValueError: the time has no zone.
    """
    if when.tzinfo is None:
        raise ValueError(f"{when!r} has no time zone")
    return when.astimezone(timezone.utc)
