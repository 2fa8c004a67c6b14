"""One mounted blueprint in one app: all that belongs to the app lives here.

The blueprint object itself may serve several apps, so it keeps nothing of any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field

from flask import Flask
from flask.sansio.app import App

from .errors import BadPayload
from .events import Event
from .events import read_event
from .events import unreadable
from .inbox import Inbox
from .settings import Settings
from .signals import work_signals
from .sources import Source
from .subscribers import Subscriber
from .subscribers import Subscribers

EXTENSION = "procore_webhooks"


@dataclass(frozen=True)
class Endpoint:
    """What a delivery needs on its way, from the first byte to the last receipt."""

    name: str
    app: Flask = field(repr=False)
    source: Source
    #: ``request.blueprint`` of its deliveries: the name with those of its parents.
    blueprint: str
    #: Where the sender posts to, below the app's root.
    path: str
    #: What the keys in ``app.config`` begin with.
    config_prefix: str
    settings: Settings
    inbox: Inbox = field(repr=False)
    subscribers: Subscribers = field(repr=False)

    @property
    def dispatch(self) -> str:
        """Who runs subscribers: ``DISPATCH``, or in tests the request itself.

        Looked up each time: many tests set ``TESTING`` after the app is made.
        """
        configured = self.app.config.get(f"{self.config_prefix}DISPATCH")
        if configured is None and self.app.testing:
            return "inline"
        return self.settings.dispatch

    def read(self, body: bytes, timestamp: str = "") -> Event:
        """Read an authentic body.

        :raises BadPayload: it is not a JSON object.
        """
        return read_event(body, self.source.read, timestamp, **self._received)

    def read_any(self, body: bytes, timestamp: str) -> tuple[Event, str | None]:
        """Read an authentic body, whatever it holds; with the reason if unreadable."""
        try:
            return self.read(body, timestamp), None
        except BadPayload as bad:
            return unreadable(body, timestamp, **self._received), bad.reason

    def ignores(self, event: Event) -> bool:
        """Whether the loop filter leaves the event out: the app's own change."""
        return (
            event.user_id in self.settings.ignore_user_ids
            or event.application_id in self.settings.ignore_application_ids
        )

    def subscribers_for(self, event: Event) -> list[Subscriber]:
        """Who is run for the event: each name once, in order of registration."""
        found = self.subscribers.matching(event)
        for signal in work_signals(event):
            found += signal.subscribers_for(self.app)
        found.sort(key=lambda subscriber: subscriber.order)
        return list({subscriber.name: subscriber for subscriber in found}.values())

    @property
    def _received(self) -> dict[str, str]:
        return {"source": self.source.name, "endpoint": self.name}


def endpoints(app: App) -> dict[str, Endpoint]:
    """The endpoints mounted in ``app``, by the blueprint name of their requests."""
    mounted: dict[str, Endpoint] = app.extensions.setdefault(EXTENSION, {})
    return mounted
