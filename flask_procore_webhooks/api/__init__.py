"""Procore's REST side: calls of the API, the app's hooks, missing events.

It needs the extra ``procore``: ``pip install 'flask-procore-webhooks[procore]'``.
"""

from __future__ import annotations

try:
    import requests as requests
except ImportError:
    raise ImportError(
        "flask_procore_webhooks.api needs requests:"
        " pip install 'flask-procore-webhooks[procore]'",
        name="requests",
    ) from None

from .answers import Answer as Answer
from .changes import Change as Change
from .client import ProcoreAPI as ProcoreAPI
from .errors import APIError as APIError
from .errors import BadAnswer as BadAnswer
from .errors import LoginFailed as LoginFailed
from .errors import NotFound as NotFound
from .errors import NotPermitted as NotPermitted
from .errors import procore_errors as procore_errors
from .errors import RateLimited as RateLimited
from .errors import Unavailable as Unavailable
from .tokens import Token as Token
from .tokens import TokenCache as TokenCache
