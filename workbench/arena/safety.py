"""What the app refuses: files that were not uploaded to it, addresses, users' errors in more than a line."""

import functools
import inspect
import os
import re
from pathlib import Path

import gradio as gr

import store


def refuse_foreign_files(value) -> None:
    """Only what was uploaded to this app may be an input: a URL would be fetched, a path read."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and ("meta" in value or "url" in value or "orig_name" in value):
            if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", path):
                raise gr.Error("addresses are not fetched: upload the file", print_exception=False)
            if not Path(path).resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
                raise gr.Error("only an uploaded file can be asked: upload it first", print_exception=False)
        for part in value.values():
            refuse_foreign_files(part)
    elif isinstance(value, list | tuple):
        for part in value:
            refuse_foreign_files(part)


class LocalOnly:
    """ASGI middleware: no address is fetched for anyone, and the browser is told to load nothing from elsewhere."""

    POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if re.search(r"(file|proxy)=\s*[a-zA-Z][a-zA-Z0-9+.-]*:", scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            return await send({"type": "http.response.body", "body": b"addresses are not fetched"})

        async def with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", self.POLICY)]
            await send(message)

        return await self.app(scope, receive, with_policy)


def plainly(function):
    """Users' errors become the page's own messages, in one line."""

    def say(error):
        return gr.Error(" ".join(str(error).split()), print_exception=False, duration=8, title="")

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            try:
                yield from function(*args, **kwargs)
            except store.UserError as error:
                raise say(error) from None

    else:

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except store.UserError as error:
                raise say(error) from None

    return wrapped
