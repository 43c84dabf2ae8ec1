"""The HTTP server's log: what clients send wrongly is one line, and no traceback of ours."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

_log = logging.getLogger(__name__)


class _ClientFaults(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError | web.RequestPayloadError):
            return True
        _log.info("a request could not be read: %s", one_line(error))
        return False


def http_log() -> logging.Logger:
    """The logger for aiohttp's server."""
    log = logging.getLogger("agentsched.daemon.http")
    if not log.filters:
        log.addFilter(_ClientFaults())
    return log


def one_line(error: Exception) -> str:
    """The error's message on one line."""
    return " ".join(str(error).split())
