"""Access control of the dashboard, and the security headers of its answers.

On loopback the threat is another page in the same browser: the Host header is checked against DNS rebinding. On any other
address every visitor needs a token.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import threading
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dasearch.errors import WrongUse

ENTER = "/enter"
COOKIE = "dasearch-visitor"
SHORTEST_TOKEN = 16  # characters; generated tokens have 43
LOCAL_NAMES = ("localhost", "localhost.")
STYLE = re.compile(r"""createElement\("style"\)[^']{0,300}?textContent=('(?:[^'\\]|\\.)*')""")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Visitors:
    """Authenticates visitors by ``Authorization: Bearer``, or by the cookie that a one-time link sets."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._session = secrets.token_urlsafe(32)  # the cookie holds this, not the token
        self._ticket: str | None = secrets.token_urlsafe(32)
        self._entering = threading.Lock()

    @property
    def link(self) -> str:
        """Path and query of the one-time link."""
        return f"{ENTER}?ticket={self._ticket}"

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether a request's headers have the token or the session's cookie."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return same(given.strip(), self.token)
        return same(_cookie(headers.get("cookie", "")), self._session)

    def enter(self, request: Request) -> Response:
        """Redeem the ticket of the one-time link, once, and set the session's cookie."""
        with self._entering:
            ticket, good = self._ticket, False
            if ticket is not None and same(request.query_params.get("ticket", ""), ticket):
                self._ticket, good = None, True
        if not good:
            return PlainTextResponse("This link was used already, or is incomplete; send the token as Bearer.\n", 403)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self._session, httponly=True, samesite="strict", path="/")
        return answer


def _cookie(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


def same(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in constant time."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def content_policy(script: str) -> str:
    """The Content-Security-Policy: same origin, no inline scripts, inline styles only by hash."""
    hashes = [hashlib.sha256(ast.literal_eval(match[1]).encode()).digest() for match in STYLE.finditer(script)]
    styles = " ".join(["'self'", *(f"'sha256-{base64.b64encode(one).decode()}'" for one in hashes)])
    return (
        f"default-src 'none'; script-src 'self'; style-src {styles}; style-src-attr 'unsafe-inline'; "  # for plotly
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


class Guard:
    """ASGI middleware that rejects unauthorised requests and adds security headers to every answer.

    Args:
        visitors: None where every visitor on this machine has access.
        policy: the Content-Security-Policy.
    """

    def __init__(self, app: ASGIApp, *, visitors: Visitors | None, policy: str) -> None:
        self.app = app
        self.visitors = visitors
        self.headers = {"Content-Security-Policy": policy, **HEADERS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._refusal(scope) or self.app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("The dashboard is read-only; it accepts only GET.\n", 405, {"Allow": "GET, HEAD"})
        if self.visitors is None:
            if is_local(hostname(headers.get("host", ""))):
                return None
            return PlainTextResponse("This dashboard answers only to 127.0.0.1 and localhost.\n", 421)
        if scope["path"] == ENTER:
            return self.visitors.enter(Request(scope))
        if self.visitors.knows(headers):
            return None
        sentence = "This dashboard needs its token: open the one-time link, or send Authorization: Bearer TOKEN.\n"
        return PlainTextResponse(sentence, 401, {"WWW-Authenticate": "Bearer"})


def hostname(host: str) -> str:
    """The host name of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_local(name: str) -> bool:
    """Whether a name or address is loopback; works offline, without a resolver."""
    if name.lower() in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def visitors_for(host: str, *, allow_remote: bool, token: str | None) -> Visitors | None:
    """The access control for an address: none on loopback, else a token.

    Raises:
        WrongUse: for a non-loopback address without ``allow_remote``, or a token that is too short.
    """
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise WrongUse(f"a token of {len(token)} characters is too short; give at least {SHORTEST_TOKEN}")
    if is_local(host):
        return None if token is None else Visitors(token)
    if not allow_remote:
        raise WrongUse(
            f"other machines can reach {host}; add --allow-remote, which requires a token from every visitor, or remove --host"
        )
    return Visitors(token or secrets.token_urlsafe(32))
