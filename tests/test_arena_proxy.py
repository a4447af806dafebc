"""The A/B app at a sub-path of another server, as docs/arena.md has it: page, streaming answers, sound, saved links."""

import contextlib
import re
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from arena_lab import ITEMS, make
from browser import page
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from workbench import arena

pytestmark = pytest.mark.chromium


@contextlib.contextmanager
def proxy(target: str, path: str):
    """A server that hands `path` and what is below it to `target`, without the path; yields its address."""
    client = httpx.AsyncClient(timeout=None)

    async def forward(request: Request):
        url = target + request.url.path.removeprefix(path).lstrip("/") + (f"?{request.url.query}" if request.url.query else "")
        headers = [(k, v) for k, v in request.headers.raw if k.lower() != b"accept-encoding"]
        asked = client.build_request(request.method, url, headers=headers, content=await request.body())
        reply = await client.send(asked, stream=True)
        kept = {k: v for k, v in reply.headers.items() if k not in ("content-length", "transfer-encoding", "connection")}
        return StreamingResponse(reply.aiter_raw(), reply.status_code, kept, background=BackgroundTask(reply.aclose))

    def elsewhere(request: Request):
        return PlainTextResponse("not the app", 404)

    methods = ["GET", "POST", "HEAD", "OPTIONS"]
    routes = [Route(f"{path}/{{rest:path}}", forward, methods=methods), Route("/{rest:path}", elsewhere, methods=methods)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://lab.localhost:{port}{path}/"
    finally:
        server.should_exit = True
        thread.join(10)


def test_the_app_works_at_a_sub_path_of_another_server(tmp_path):
    app = arena.build(make(tmp_path / "lab"))
    _, address, _ = app.launch(prevent_thread_lock=True, root_path="/tools/arena", hosts=("lab.localhost",))
    try:
        with proxy(address, "/tools/arena") as outside, page(outside) as tab:
            missed = []
            tab.on("response", lambda reply: missed.append(reply.url) if reply.status >= 400 else None)
            tab.locator("#question textarea, #question input").fill(ITEMS[0][0])
            tab.locator("#ask").click()
            tab.locator("#compare-left:not([disabled])").wait_for(timeout=60_000)
            words = tab.locator("#answer-right .said").text_content()
            tab.locator("#asked audio, #asked button[aria-label='Play']").first.wait_for(timeout=30_000, state="attached")
            tab.locator("#save").click()
            link = tab.locator("#compare-message a")
            link.wait_for(timeout=30_000)
            assert re.fullmatch(re.escape(outside) + r"\?ask=a[0-9a-f]{12}", link.get_attribute("href"))
            tab.goto(link.get_attribute("href"))
            tab.locator("#answer-right .said .tok").first.wait_for(timeout=60_000)
            assert tab.locator("#answer-right .said").text_content() == words
            assert not [url for url in missed if "favicon" not in url] and not tab.complaints
    finally:
        app.close(verbose=False)
