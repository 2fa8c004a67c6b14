"""A client of Procore's API with the credentials of an endpoint's configuration."""

from __future__ import annotations

import time
from functools import partial

import requests

from ..endpoint import Endpoint
from ..errors import ConfigError
from ..storage.engines import is_in_memory
from .client import ProcoreAPI
from .client import WAIT
from .errors import APIError
from .tokens import StateTokens

#: Seconds that a call of a command waits for rate limits.
PATIENCE = 60.0


def client_of(
    endpoint: Endpoint,
    company_id: str | int | None,
    shares_token: bool,
    session: requests.Session | None,
) -> ProcoreAPI:
    """The client of this process, with one token and one budget for every company.

    :param session: with one, a client of its own.
    :raises ConfigError: the credentials are missing.
    """
    make = partial(api_of, endpoint, shares_token=shares_token, session=session)
    if session is None:
        key = ProcoreAPI, endpoint.name, shares_token
        client = endpoint.state.runtime.part(key, make)
    else:
        client = make()
    return client if company_id is None else client.of_company(company_id)


def seconds_ahead(endpoint: Endpoint) -> float | None:
    """Seconds by which this host's clock is ahead of Procore's, to about half a second.

    ``None`` if the server does not say. The request is without credentials.
    """
    try:
        now = api_of(endpoint).time(ask=True)
    except APIError:
        return None
    # The header is in whole seconds.
    return None if now is None else time.time() - now.timestamp() - 0.5


def api_of(
    endpoint: Endpoint,
    *,
    shares_token: bool = False,
    session: requests.Session | None = None,
    wait: float = WAIT,
    reserve: float = 0.0,
) -> ProcoreAPI:
    """The client; ``shares_token`` keeps its token in the inbox's database.

    :param wait: as for :class:`ProcoreAPI`, like ``session`` and ``reserve``.
    :raises ConfigError: the credentials are missing.
    """
    settings, prefix = endpoint.settings.api, endpoint.config_prefix
    client_id, client_secret = settings.client_id, settings.client_secret
    if not client_id or not client_secret:
        keys = f"{prefix}API_CLIENT_ID and {prefix}API_CLIENT_SECRET"
        raise ConfigError([f"{endpoint.name}: set {keys} to call Procore's API."])
    cache = None
    # A database in memory has one connection, and belongs to one process.
    if shares_token and not is_in_memory(endpoint.store.database.url):
        cache = StateTokens(endpoint.store, f"{settings.login_url} {client_id}")
    return ProcoreAPI(
        client_id,
        client_secret,
        base_url=settings.api_url,
        login_url=settings.login_url,
        session=session,
        wait=wait,
        cache=cache,
        reserve=reserve,
    )
