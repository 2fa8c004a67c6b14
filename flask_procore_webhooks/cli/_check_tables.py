"""The part of ``check`` that examines whether the inbox can be written."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.exc import IntegrityError

from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from ..storage.gaps import Gaps
from ..storage.mismatches import mismatches
from ..storage.probes import largest_packet
from ..storage.probes import read_only
from ..storage.probes import stored_schema
from ..storage.probes import try_writes
from ..storage.tables import SCHEMA
from ._findings import Finding
from ._findings import warning

#: Bytes of a statement beside the body.
OVERHEAD = 64 * 1024


def tables(endpoint: Endpoint, gaps: Gaps) -> Iterator[Finding]:
    """Compare the tables with the code, insert a row into each, and roll back."""
    if gaps.stop_deliveries:
        yield Finding(f"The inbox cannot be used: {gaps.advice}.")
        return
    if gaps.indexes:
        yield warning(f"Queries are slow: {gaps.advice}.")
    yield from _newer_schema(endpoint)
    database = endpoint.store.database
    for mismatch in mismatches(database.engine, database.tables):
        yield Finding(f"{mismatch.text}.", mismatch.stops_deliveries)
    yield from _writes(endpoint)
    yield from _packet(endpoint)


def describe_tables(gaps: Gaps | None) -> str:
    """The tables in two words or more, for the report."""
    if gaps is None:
        return "unknown"
    if gaps.tables and not gaps.columns:
        return f"missing: {', '.join(gaps.table_names)}"
    return "older than the package" if gaps.stop_deliveries else "present"


def _newer_schema(endpoint: Endpoint) -> Iterator[Finding]:
    schema = stored_schema(endpoint.store)
    if schema is not None and schema > SCHEMA:
        yield warning(
            f"The tables are newer than the package (schema {schema}, and the package"
            f" has {SCHEMA}): upgrade the package on this host."
        )


def _writes(endpoint: Endpoint) -> Iterator[Finding]:
    store = endpoint.store
    if reason := read_only(store):
        yield Finding(
            f"The database is read-only, deliveries are answered 503: {reason}."
        )
        return
    try:
        try_writes(store)
    except InboxUnavailable as unavailable:
        yield Finding(f"A row cannot be written, deliveries fail: {unavailable}.")
    except IntegrityError as error:
        reason = store.database.explain(error)
        yield Finding(f"A row is refused, deliveries fail: {reason}.")


def _packet(endpoint: Endpoint) -> Iterator[Finding]:
    packet, most = largest_packet(endpoint.store), endpoint.settings.max_bytes
    if packet is None:
        return
    key = f"{endpoint.config_prefix}MAX_BYTES ({most})"
    if most + OVERHEAD > packet:
        yield Finding(
            f"The server's max_allowed_packet ({packet}) is too small for {key}: larger"
            " bodies are answered 503. Raise the one or lower the other."
        )
    elif 2 * most + OVERHEAD > packet:
        # Drivers escape quotes, of which JSON has many.
        yield warning(
            f"The server's max_allowed_packet ({packet}) is less than twice {key}: the"
            " largest bodies may be answered 503, because quotes in them are escaped."
        )
