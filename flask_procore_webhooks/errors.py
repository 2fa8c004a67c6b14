"""Every error of the package, in one tree::

    ProcoreWebhooksError
    ├── ConfigError              app.config, a mount or a subscription is wrong
    └── DeliveryError            something is wrong with one delivery
        ├── BadSignature         401  no secret matches, or the time is out of tolerance
        │   └── BadAuthorization 401  no configured Authorization value matches
        ├── PayloadTooLarge      413
        ├── NoSecret             503  no secret is configured
        ├── InboxUnavailable     503  nothing was recorded: the sender must retry
        ├── EventBusy            503  inline only: another request is running the event
        ├── SubscribersFailed    500  inline only: the sender's next delivery retries
        └── BadPayload           200  authentic, but not a JSON object: quarantined

Subscribers raise :class:`RetryLater` and :class:`Discard` to postpone or to end their
work for an event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class ProcoreWebhooksError(Exception):
    """Base of every error that this package raises."""


class ConfigError(ProcoreWebhooksError):
    """The app cannot run as configured; every problem found is listed.

    :param problems: one sentence each, naming the key or the call to change.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        #: One sentence for each problem, in the order they were found.
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n- ".join((f"{len(self.problems)} problems:", *self.problems))


class DeliveryError(ProcoreWebhooksError):
    """Base of the errors of one delivery.

    :param reason: for the log; the answer does not hold it.
    :param cause: the check that refused, one of a fixed set: repeated refusals of one
        cause are counted in the log. By default the reason, which must then be a fixed
        text, without numbers and without anything that the sender has sent.
    """

    #: HTTP status of the answer.
    status: ClassVar[int] = 500
    #: The error in the answer. Procore shows it to its hook administrators.
    answer: ClassVar[str] = "Processing failed"
    #: Seconds after which the sender may try again, or ``None``.
    retry_after: ClassVar[int | None] = None

    def __init__(self, reason: str, cause: str = "") -> None:
        #: What happened, without secrets, signatures or bodies.
        self.reason = reason
        #: The check that refused.
        self.cause = cause or reason
        super().__init__(reason)


class BadSignature(DeliveryError):
    """The delivery is not authentic: its signature or timestamp is invalid."""

    status = 401
    answer = "Invalid signature"


class BadAuthorization(BadSignature):
    """The delivery is not authentic: its ``Authorization`` value is invalid."""

    answer = "Invalid authorization"


class PayloadTooLarge(DeliveryError):
    """The body is larger than ``MAX_BYTES``."""

    status = 413
    answer = "Payload too large"


class NoSecret(DeliveryError):
    """The endpoint has no secret, so no delivery can be authentic."""

    status = 503
    answer = "Unavailable"
    retry_after = 60

    def __init__(
        self, reason: str = "no secret is configured; check says what to set"
    ) -> None:
        super().__init__(reason)


class InboxUnavailable(DeliveryError):
    """The inbox cannot be reached or has no tables; nothing was recorded."""

    status = 503
    answer = "Unavailable"
    retry_after = 5


class EventBusy(DeliveryError):
    """Another request is running this event, which may still fail."""

    status = 503
    answer = "Unavailable"
    retry_after = 1


class SubscribersFailed(DeliveryError):
    """An attempt failed in the request; the sender's next delivery tries again."""

    status = 500
    answer = "Processing failed"


class BadPayload(DeliveryError):
    """An authentic body is not a JSON object.

    It is recorded with the status ``quarantined``: no subscriber runs for it, and the
    inbox keeps its bytes.
    """

    status = 200
    answer = ""


class RetryLater(Exception):
    """Raised by a subscriber to run again, at the earliest after ``after`` seconds.

    Its writes are rolled back. It is not a failure: no attempt is spent. A job that is
    postponed for longer than ``MAX_AGE`` is dead. With ``DISPATCH = "inline"`` the
    delivery is answered 200, and the job waits for a worker.

    :param after: seconds from now; ``None`` for about as long as the job has been
        postponed already.
    :param reason: for the log, and for the job's error.
    """

    # Class attributes, for a subclass whose constructor does not call this one.
    after: float | None = None
    reason: str = ""
    _text = "retry"

    def __init__(self, after: float | None = None, reason: str = "") -> None:
        self.after = None if after is None else float(after)
        self.reason = reason
        # Formatted now, so that a wrong ``after`` fails where it is raised.
        self._text = "retry" if after is None else f"retry after {after:g} s"
        if reason:
            self._text += f": {reason}"
        super().__init__(after, reason)

    def __str__(self) -> str:
        return self._text


class Discard(Exception):
    """Raised by a subscriber to end its work for this event.

    Its writes are rolled back, its job is ``discarded``, and other subscribers run.

    :param reason: for the log, and for the job's error.
    """

    # A class attribute, for a subclass whose constructor does not call this one.
    reason: str = ""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)
