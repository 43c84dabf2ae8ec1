"""The HTTP APIs that agents speak: one module each, between that API and our own vocabulary.

A module reads a request's body into a ``Request`` (``contract.py``), whose ``writer`` then writes the
answer in the API's form, whole or as a stream. Nothing else of the daemon knows any API. So to add one,
write its module and list it here.

Engines that speak such an API themselves are passed what clients send byte by byte
(``agentsched.daemon.upstream``); of these modules they need the writers only, for signs of life and errors
of the daemon's own.
"""

from agentsched.daemon.apis.chat import ChatCompletions
from agentsched.daemon.apis.completions import Completions
from agentsched.daemon.apis.contract import Api, Request, Writer
from agentsched.daemon.apis.messages import Messages
from agentsched.daemon.apis.responses import Responses

APIS: tuple[Api, ...] = (ChatCompletions(), Completions(), Responses(), Messages())

__all__ = ["APIS", "Api", "ChatCompletions", "Completions", "Messages", "Request", "Responses", "Writer"]
