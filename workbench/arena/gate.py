"""What is refused before the app sees it: other hosts' names, other pages' requests, addresses to fetch, guessed passwords,
more than a question needs. ASGI middleware; knows no Gradio."""

import ipaddress
import json
import math
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from workbench.arena import uploads

LARGEST_UPLOAD = 20 * 1024 * 1024  # of one file
LARGEST_REQUEST = 1024 * 1024  # of anything else
FOLDER_LIMIT = 2 * 1024**3  # of all uploads and sounds together
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"


def own_names(host: str, more: tuple[str, ...] = ()) -> frozenset[str]:
    """The names by which an app that listens on `host` may be called: this machine's, and `more`."""
    names = {"localhost", host, *more}
    if host not in ("127.0.0.1", "localhost", "::1"):
        names |= {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.strip("[]").rstrip(".").lower() for name in names if name)


def host_of(value: str) -> str:
    """The name in a Host header, without port, brackets and case."""
    try:
        return (urlsplit(f"//{value}").hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def is_address(name: str) -> bool:
    """Whether a name is an IP address, which no other site's name server can give away."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Throttle:
    """How long a client has to wait before it may try another password.

    Five tries are free; then each wait is twice the last, up to a minute; 60 failures a minute from all clients together
    make everyone wait. A try counts from its beginning, so that a hundred at once are a hundred, and a right password
    forgets them."""

    FREE, LONGEST_S, ALL, WINDOW_S, CLIENTS = 5, 60.0, 60, 60.0, 10_000

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._clients: OrderedDict[str, tuple[int, float]] = OrderedDict()  # tries that failed, when the next may be
        self._recent: list[float] = []

    def wait_s(self, client: str) -> float:
        """Seconds until `client` may try; 0 begins a try."""
        now = self._clock()
        self._recent = [at for at in self._recent if now - at < self.WINDOW_S]
        failed, free_at = self._clients.get(client, (0, 0.0))
        if free_at > now:
            return free_at - now
        if len(self._recent) >= self.ALL:
            return self.WINDOW_S - (now - self._recent[0])
        self._recent.append(now)
        wait = min(self.LONGEST_S, 2.0 ** (failed - self.FREE)) if failed >= self.FREE else 0.0
        self._clients[client] = (failed + 1, now + wait)
        self._clients.move_to_end(client)
        while len(self._clients) > self.CLIENTS:
            self._clients.popitem(last=False)
        return 0.0

    def passed(self, client: str) -> None:
        """The try that `client` has begun was right."""
        self._clients.pop(client, None)
        if self._recent:
            self._recent.pop()


class TooLarge(Exception):
    """A request goes on beyond what it may hold."""


class Gate:
    """The middleware. `hosts`: see own_names; `clock` is for tests."""

    def __init__(self, app, hosts: frozenset[str], folder: Path, clock: Callable[[], float] = time.monotonic):
        self.app, self.hosts, self.folder = app, hosts, folder
        self.throttle = Throttle(clock)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused and scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if refused:
            return await answer(send, *refused)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        login = scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/login")
        client = (scope.get("client") or ("",))[0]
        if login and (wait := self.throttle.wait_s(client)) > 0:
            seconds = math.ceil(wait)
            return await answer(send, 429, f"too many tries: wait {seconds} s", [(b"retry-after", str(seconds).encode())])
        started = False

        async def watched(message):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if login and message["status"] < 400:
                    self.throttle.passed(client)
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"same-origin"),
                ]
            await send(message)

        try:
            await self.app(scope, self._counted(scope, receive), watched)
        except TooLarge:
            if not started:
                await answer(send, 413, too_large(scope))

    def _refused(self, scope, headers: dict[bytes, str]) -> tuple[int, str] | None:
        """(status, why), or None."""
        host = host_of(headers.get(b"host", ""))
        if host not in self.hosts and not is_address(host):
            return 421, f"this app is not called {host[:80]!r}; start it with --allow-host {host[:80]} if it is"
        origin = headers.get(b"origin")
        if origin is not None and scope.get("method") not in ("GET", "HEAD"):
            asking = host_of(origin.partition("://")[2])
            if asking not in self.hosts | {host, host_of(headers.get(b"x-forwarded-host", ""))} - {""}:
                return 403, "another page's requests are refused"
        if scope["type"] == "http" and re.search(r"(file|proxy)=\s*[a-zA-Z][a-zA-Z0-9+.-]*:", scope["path"]):
            return 403, "addresses are not fetched"
        length = headers.get(b"content-length", "0")
        if length.isdigit() and int(length) > largest(scope):
            return 413, too_large(scope)
        if is_upload(scope) and uploads.size(self.folder) > FOLDER_LIMIT:
            return 507, "this app holds too many uploads: try again in an hour, when they are gone"
        return None

    def _counted(self, scope, receive):
        """`receive` that ends where the body grows beyond what it may hold, whatever its header tells."""
        left = largest(scope)

        async def counted():
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise TooLarge
            return message

        return counted


def is_upload(scope: dict) -> bool:
    """Whether the request (an ASGI scope) uploads a file."""
    return scope.get("method") == "POST" and re.search(r"/(upload|process_recording|stream/[^/]+)/?$", scope["path"]) is not None


def largest(scope: dict) -> int:
    """The bytes that a request's body may have."""
    return LARGEST_UPLOAD + LARGEST_REQUEST if is_upload(scope) else LARGEST_REQUEST


def too_large(scope: dict) -> str:
    """The error message for a request whose body exceeds the limit."""
    return f"this is larger than the maximum allowed size of {largest(scope) // 1024**2} MB"


async def answer(send: Callable, status: int, words: str, headers: list[tuple[bytes, bytes]] = ()) -> None:
    """A short answer of the gate's own."""
    body = json.dumps({"detail": words}).encode()
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": body})
