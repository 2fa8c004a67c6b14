"""The operator's name in the journal."""

from __future__ import annotations

import getpass
import socket


def actor() -> str:
    """Return user and host."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        name = "?"
    return f"{name}@{socket.gethostname()}"
