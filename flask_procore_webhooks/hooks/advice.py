"""Advice: what a configuration makes improbable to work. It needs no ``requests``."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote
from urllib.parse import urlsplit

from ..endpoint import Endpoint


def advice(endpoint: Endpoint) -> Iterator[str]:
    """Why deliveries of the endpoint's hooks may not be taken, one sentence each."""
    if not endpoint.settings.authorizations:
        yield (
            f"{endpoint.config_prefix}AUTHORIZATION is not set: Procore signs nothing,"
            " so a delivery that Procore itself sends is refused. Set it, unless URL is"
            " a relay that signs."
        )
    path = unquote(urlsplit(endpoint.settings.api.url or "").path)
    # A server or a proxy may have a prefix before the route.
    fits = path.rstrip("/").endswith(endpoint.path.rstrip("/"))
    if endpoint.settings.api.url and not fits:
        yield (
            f"URL's path is {path or '/'}, and the route is {endpoint.path}: deliveries"
            " would not arrive, unless a proxy rewrites it."
        )
