"""A notebook in Debian's Chromium: a server of its own on a free port, and a page that keeps what went wrong."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
]


@contextlib.contextmanager
def served(notebook: str, lab: Path, command: str = "run"):
    """`marimo run` (or `edit`) of a notebook on a lab; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)
    # A home of its own: no setting of the person who runs this plays in, and none is changed.
    with tempfile.TemporaryDirectory() as home, log:
        env = {
            **os.environ,
            "SALAD_LAB": str(lab),
            "XDG_CONFIG_HOME": home,
            "XDG_STATE_HOME": home,
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "marimo",
                "-q",
                "-y",
                command,
                str(ROOT / notebook),
                "--headless",
                "--no-token",
                "--port",
                str(port),
                "--skip-update-check",
            ]
            if command == "edit"
            else [
                sys.executable,
                "-m",
                "marimo",
                "-q",
                "-y",
                "run",
                str(ROOT / notebook),
                "--headless",
                "--no-token",
                "--port",
                str(port),
            ],
            env=env,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(300):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/health", timeout=1)
                    break
                if process.poll() is not None:
                    break
                time.sleep(0.1)
            else:
                process.terminate()
            if process.poll() is not None:
                raise RuntimeError(f"marimo did not start: {Path(log.name).read_text()}")
            yield address
        finally:
            process.terminate()
            process.wait(20)
            Path(log.name).unlink(missing_ok=True)


@contextlib.contextmanager
def page(address: str, width: int = 1500, height: int = 1000, dark: bool = False):
    """The page, opened; `page.complaints` collects the browser's errors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        try:
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
            tab.set_default_navigation_timeout(180_000)  # a busy machine takes its time to start
            tab.complaints = []
            tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
            tab.goto(address)
            yield tab
        finally:
            browser.close()
