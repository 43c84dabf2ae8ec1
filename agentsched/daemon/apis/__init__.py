"""The HTTP APIs that agents speak: one module each, between that API and our own vocabulary.

A module reads a request's body into a ``Request`` (``contract.py``), whose ``writer`` then writes the
answer in the API's form, whole or as a stream. Nothing else of the daemon knows any API. So to add one,
write its module and list it here.

An engine that speaks such an API itself, and is to be passed what the client sent byte by byte, belongs
behind ``Calls``: a ``Request`` carries the body as it came (``raw``), and what comes back needs no writer.
"""

from agentsched.daemon.apis.chat import ChatCompletions
from agentsched.daemon.apis.completions import Completions
from agentsched.daemon.apis.contract import Api, Request, Writer
from agentsched.daemon.apis.messages import Messages
from agentsched.daemon.apis.responses import Responses

APIS: tuple[Api, ...] = (ChatCompletions(), Completions(), Responses(), Messages())

__all__ = ["APIS", "Api", "ChatCompletions", "Completions", "Messages", "Request", "Responses", "Writer"]
