"""`dasearch dashboard`: serves a database at an address until Ctrl-C."""

from __future__ import annotations

import shlex
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
import uvicorn

from dasearch.config import StudySettings
from dasearch.errors import NoStudies, WrongUse
from dasearch.report.dashboard.app import application
from dasearch.report.dashboard.reading import LOCK_SECONDS, Reader
from dasearch.report.dashboard.security import Visitors, visitors_for
from dasearch.search.store import open_store


@dataclass(frozen=True)
class Address:
    """Address and access of the server.

    Attributes:
        port: 0 for any free one.
        token: required on a non-loopback address; None for a new one.
    """

    host: str
    port: int
    allow_remote: bool = False
    token: str | None = None


def serve(
    storage: str | None, output: str, address: Address, *, open_browser: bool, say: Callable[[str], None]
) -> None:
    """Serve the dashboard of a database until it is interrupted.

    Raises:
        WrongUse: if the address is not allowed or is taken, or the file is not a study database.
    """
    visitors = visitors_for(address.host, allow_remote=address.allow_remote, token=address.token)
    connect = partial(open_store, storage, output, create=False, lock_seconds=LOCK_SECONDS)
    first = first_command(storage, output)
    with suppress(NoStudies):  # without a database yet, the pages wait for the first study
        connect().close()
    with listening(address) as listener:
        place = url(address.host, listener.getsockname()[1])
        announce(place, visitors, say)
        torch.set_num_threads(1)  # leaves the cores to a study that trains on this machine
        if open_browser:
            webbrowser.open(place if visitors is None else place + visitors.link)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after its shutdown
            server(Reader(connect, first), visitors).run(sockets=[listener])
    say("dashboard stopped")


def first_command(storage: str | None, output: str) -> str:
    """The command that begins a study in a database; a URL may contain a password, so it is not shown."""
    words = ["dasearch", "run", "--budget", "30"]
    if storage is not None:
        words += ["--storage", "URL" if "://" in storage else storage]
    elif output != StudySettings.model_fields["output"].default:
        words += ["--set", f"output={output}"]
    return shlex.join(words)


def server(reader: Reader, visitors: Visitors | None) -> uvicorn.Server:
    """A server without logs."""
    app = application(reader, visitors)
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=2
    )
    return uvicorn.Server(config)


def listening(address: Address) -> socket.socket:
    """A listening socket.

    Raises:
        WrongUse: if the port is taken, or the address does not belong to this machine.
    """
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise WrongUse(
            f"{address.host} port {address.port} cannot be used ({reason}); give another --port, or 0 for any free one"
        ) from None


def url(host: str, port: int) -> str:
    """The server's URL; an IPv6 address is in brackets."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def announce(place: str, visitors: Visitors | None, say: Callable[[str], None]) -> None:
    """Print the URL, and where a token is required also the token and a one-time link."""
    if visitors is None:
        say(f"dashboard: {place}   (Ctrl-C ends it)")
        return
    say(f"dashboard, once, for one browser: {place}{visitors.link}   (Ctrl-C ends it)")
    say(f"or with Authorization: Bearer {visitors.token}")
    say("the connection is not encrypted; on an untrusted network, use an SSH tunnel")
