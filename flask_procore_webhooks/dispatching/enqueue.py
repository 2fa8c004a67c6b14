"""Enqueue: events that the app records itself, dispatched after their commit."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from datetime import timezone
from functools import partial
from typing import Any
from typing import TYPE_CHECKING

from sqlalchemy import event as listeners
from sqlalchemy.orm import Session

from ..endpoint import Endpoint
from ..event import Event
from ..inbox.added import AddResult
from ..inbox.added import connection_of
from ..inbox.added import ENQUEUE
from ..inbox.added import insert_event
from ..inbox.added import seen_since
from ..inbox.added import with_id
from ..log import log
from ..senders.payload import digest
from ..storage import tally
from ..storage.store import Store
from .background import background_of
from .dispatch import notify_others

if TYPE_CHECKING:
    from ..api import Change

#: The outcome in the tally.
ENQUEUED = "enqueued"
#: In ``Session.info``: endpoints and row ids of the events in its transaction.
WAITING = "flask_procore_webhooks.enqueued"

#: Prefix of the ids of changes, before a digest.
CHANGE = "change:"

Ids = Mapping[str, str | int | None]


def enqueue(
    endpoint: Endpoint, type: str, id: str | None, ids: Ids, data: object
) -> Event:
    """Record an event; see :meth:`ProcoreWebhooks.enqueue`."""
    event, store = _new_event(endpoint, type, id, ids, data), endpoint.store
    if source := store.session:
        session = source()
        result = insert_event(store, event, connection_of(store, session))
        if result and result.is_new:
            _dispatch_after_commit(session, endpoint, result.row_id)
    else:
        store.traits()  # with a connection of its own, so not within the next
        result = store.run(partial(insert_event, store, event))
        if result and result.is_new:
            _dispatch(endpoint, [result.row_id])
    return _stored(endpoint, event, result)


def enqueue_changes(endpoint: Endpoint, changes: Iterable[Change]) -> Iterator[Event]:
    """Record the changes that were not seen; see
    :meth:`ProcoreWebhooks.enqueue_changes`.
    """
    # All pages are read before the first statement of the transaction.
    for change in list(changes):
        at, key = change.updated_at, (change.resource_type, change.resource_id)
        # The same change has the same id in every sweep.
        state = at.isoformat() if at else json.dumps(change.item, sort_keys=True)
        of_state = digest("/".join((*key, state)).encode())
        id = CHANGE + of_state.removeprefix("sha256:")
        if _has_seen(endpoint.store, key, id, at):
            continue
        ids = {
            "resource_id": change.resource_id,
            "project_id": change.project_id,
            "company_id": change.company_id,
        }
        type = f"{key[0]}.update"
        try:
            yield enqueue(endpoint, type, id, ids, dict(change.item))
        except ValueError as error:
            text = "%s: %s of %s is enqueued without its data: %s"
            log.warning(text, endpoint.name, type, key[1], error)
            yield enqueue(endpoint, type, id, ids, None)


def _has_seen(store: Store, key: tuple[str, str], id: str, at: datetime | None) -> bool:
    """Whether the inbox, as the session's transaction sees it, has the change."""
    queries = [with_id(store, id)]
    if at is not None:
        queries.append(seen_since(store, *key, at))
    if source := store.session:
        connection = connection_of(store, source())
        return any(connection.execute(each).first() for each in queries)
    return any(store.rows(each) for each in queries)


def _new_event(
    endpoint: Endpoint,
    type: str,
    id: str | None,
    ids: Ids,
    data: object,
) -> Event:
    """The event as every run reads it again from its body."""
    resource_type, dot, reason = type.rpartition(".")
    if not dot:
        resource_type, reason = type, ""
    if not resource_type.strip():
        raise ValueError(f"The type {type!r} names no resource: 'Submittals.update'.")
    content: dict[str, object] = {"id": id or f"{ENQUEUE}:{secrets.token_hex(16)}"}
    # The keys of the shape ENQUEUED.
    content |= {"enqueued": resource_type, "reason": reason, **ids}
    content |= {"timestamp": endpoint.store.now().isoformat(), "data": data}
    body = _to_bytes({k: value for k, value in content.items() if value is not None})
    event, unreadable = endpoint.read(body)
    if unreadable or len(body) > endpoint.settings.max_bytes:
        raise ValueError(f"The event is refused: {unreadable or 'over MAX_BYTES'}")
    return replace(event, origin=ENQUEUE)


def _to_bytes(content: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The data is no JSON value: {error}") from error


def _stored(endpoint: Endpoint, event: Event, result: AddResult | None) -> Event:
    """The event as the inbox has it, which may be an earlier one of the same id."""
    if result is None:
        return event
    if result.body is not None:
        event = replace(endpoint.read(result.body)[0], id=event.id)
    received_at = result.received_at.replace(tzinfo=timezone.utc)
    return replace(event, origin=result.origin, received_at=received_at)


def _dispatch_after_commit(session: Session, endpoint: Endpoint, row_id: int) -> None:
    if WAITING not in session.info:
        session.info[WAITING] = []
        listeners.listen(session, "after_commit", _after_commit)
        listeners.listen(session, "after_transaction_end", _after_end)
    session.info[WAITING].append((endpoint, row_id))


def _after_commit(session: Session) -> None:
    # It is called after the release of a savepoint, too.
    if session.in_nested_transaction():
        return
    waiting: list[tuple[Endpoint, int]] = session.info[WAITING]
    by_name: dict[str, tuple[Endpoint, list[int]]] = {}
    for endpoint, row_id in waiting:
        by_name.setdefault(endpoint.name, (endpoint, []))[1].append(row_id)
    waiting.clear()
    for endpoint, rows in by_name.values():
        # The transaction is committed, so its caller gets no error.
        try:
            _dispatch(endpoint, rows)
        except Exception:
            log.exception("%s: enqueued events wait for the next poll", endpoint.name)


def _after_end(session: Session, transaction: Any) -> None:
    if transaction.parent is None:
        # After a rollback the events do not exist.
        session.info[WAITING].clear()


def _dispatch(endpoint: Endpoint, rows: list[int]) -> None:
    """Have committed events run by this process, or notify another one."""
    tally.count(endpoint.store, ENQUEUED, len(rows))
    mode, state = endpoint.dispatch, endpoint.state
    if mode != "background":
        notify_others(endpoint, mode, rows, is_new=True)
    elif state.prepared_pid == os.getpid():
        # A process that does not serve starts no thread.
        background_of(state).wake()
