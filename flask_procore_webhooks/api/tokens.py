"""Access tokens: threads share one, and processes too if wanted."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import Protocol

from ..log import log
from ..operations.seen import put_state
from ..operations.seen import states
from ..schema.state import WHOLE_INBOX
from ..storage.store import Store
from .errors import LoginFailed

#: Seconds before its end at which a token is renewed.
MARGIN = 60.0
#: Seconds for which credentials that Procore refused are not sent again.
REFUSED = 30.0
#: Prefix of the names of rows in the state table that hold a token.
TOKEN = "token:"


@dataclass(frozen=True)
class Token:
    """An access token; the repr leaves it out."""

    text: str = field(repr=False)
    #: By the monotonic clock.
    ends_at: float

    @property
    def seconds_left(self) -> float:
        return self.ends_at - time.monotonic()


class TokenCache(Protocol):
    """Where processes share a token."""

    def load(self) -> Token | None:
        """The token that was saved last, if it has not ended."""

    def save(self, token: Token) -> None: ...


class Tokens:
    """The current token of one client; threads share it, and one of them renews it.

    :param log_in: asks Procore for a new token.
    :param cache: shares the token with other processes.
    """

    def __init__(
        self, log_in: Callable[[], Token], cache: TokenCache | None = None
    ) -> None:
        self._log_in = log_in
        self._cache = cache
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._token: Token | None = None
        #: The last refusal of the credentials, and when, by the monotonic clock.
        self._refusal: tuple[LoginFailed, float] | None = None

    @property
    def text(self) -> str:
        """The text of the current token; ``""`` without one."""
        return self._token.text if self._token else ""

    def get(self, refused: Token | None = None) -> Token:
        """A token that has not ended; a new one if it is the ``refused`` one.

        :raises APIError: Procore gave none.
        """
        found = self._token
        if not _is_usable(found, refused):
            if self._pid != os.getpid():
                # A thread of the parent may have held it at the fork.
                self._lock, self._pid = threading.Lock(), os.getpid()
            with self._lock:
                found = self._token
                if not _is_usable(found, refused):
                    found = self._token = self._load(refused) or self._renew()
        assert found is not None
        return found

    def _load(self, refused: Token | None) -> Token | None:
        if self._cache is None:
            return None
        found = self._cache.load()
        return found if _is_usable(found, refused) else None

    def _renew(self) -> Token:
        if self._refusal and time.monotonic() < self._refusal[1] + REFUSED:
            raise copy(self._refusal[0])
        try:
            token = self._log_in()
        except LoginFailed as error:
            self._refusal = copy(error), time.monotonic()
            raise
        if self._cache is not None:
            self._cache.save(token)
        return token


class StateTokens:
    """A token in the inbox's state table, which every process of the app reads.

    The token is stored unencrypted. The inbox uses a connection of its own, never
    ``db.session``. Errors of the database are logged, and each process has a token of
    its own then.

    :param client: identifies the client and its login server.
    """

    def __init__(self, store: Store, client: str) -> None:
        self._store = store
        self._name = TOKEN + hashlib.sha256(client.encode()).hexdigest()[:40]

    def load(self) -> Token | None:
        try:
            for row in states(self._store, self._name):
                return self._token(row["value"])
        except Exception as error:
            # Of the database; or of a row that another version of the package wrote.
            log.warning("No access token is read from the inbox: %r", error)
        return None

    def _token(self, value: Mapping[str, str]) -> Token:
        ends = datetime.fromisoformat(value["ends_at"])
        left = (ends - self._store.now()).total_seconds()
        return Token(str(value["token"]), time.monotonic() + left)

    def save(self, token: Token) -> None:
        ends = self._store.now() + timedelta(seconds=token.seconds_left)
        value = {"token": token.text, "ends_at": ends.isoformat()}
        # One try: the caller's transaction may lock a SQLite file.
        how: Any = {"endpoint": WHOLE_INBOX, "until": time.monotonic()}
        try:
            put_state(self._store, self._name, value, **how)
        except Exception as error:
            log.warning("The access token is not shared by the inbox: %s", error)


def _is_usable(token: Token | None, refused: Token | None) -> bool:
    if token is None or token.seconds_left < MARGIN:
        return False
    return refused is None or token.text != refused.text
