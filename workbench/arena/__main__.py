"""`python -m workbench.arena` opens the A/B app on a lab."""

import argparse
import os
import secrets
import signal
import sys

import store


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workbench.arena",
        description="Open the A/B app on a lab: ask by voice or text, see the text answer and the speech answer side "
        "by side with their divergence, vote, blind if you like. The votes are in the lab's store.",
    )
    parser.add_argument("--lab", metavar="DIR", help="the lab (default: $SALAD_LAB, else lab/)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine alone; any other needs a password)",
    )
    parser.add_argument(
        "--password", help="asked of every visitor, whose user name becomes the voter's (default: $SALAD_ARENA_PASSWORD)"
    )
    parser.add_argument(
        "--device", default="auto", help="where the models run: cpu, cuda, cuda:1 ... (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--tts",
        help="speak typed questions with this: espeak, kokoro, kokoro:<folder> or "
        "package.module:name (default: what spoke the lab's syntheses)",
    )
    parser.add_argument("--recogniser", help="folder or name of a CTC or Whisper-type model (default: the lab's)")
    parser.add_argument(
        "--shots", type=int, help="answered items put before each question (default: the checkpoint's own prompt)"
    )
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="another name by which visitors "
                        "may call this app, such as a proxy's; repeatable (default: this machine's own names)")  # fmt: skip
    parser.add_argument("--root-path", default=os.environ.get("GRADIO_ROOT_PATH", ""), metavar="PATH", help="where a proxy "
                        "serves the app, if not at its root: /arena (default: $GRADIO_ROOT_PATH)")  # fmt: skip
    parser.add_argument("--keep", type=int, default=4, help="models that stay in memory (default: %(default)s)")
    return parser


def _same(word: str, password: str) -> bool:
    return secrets.compare_digest(*(text.encode(errors="surrogatepass") for text in (word, password)))


def _end(number: int, frame) -> None:
    """Leave as a program that is asked to: through the handlers of its exit, which remove the uploads."""
    raise SystemExit(128 + number)


def main(args: list[str] | None = None) -> int:
    """The command line: serve the A/B app. Returns the exit code."""
    given = _parser().parse_args(args)
    password = given.password or os.environ.get("SALAD_ARENA_PASSWORD")
    try:
        if given.host not in ("127.0.0.1", "localhost", "::1") and not password:
            raise store.UserError(
                f"--host {given.host} would show the app to others: give --password, or set SALAD_ARENA_PASSWORD"
            )
        if given.device == "auto":
            import torch

            given.device = "cuda" if torch.cuda.is_available() else "cpu"
        from workbench.arena.app import build

        app = build(given.lab, given.device, given.tts, given.recogniser, given.shots, given.keep)
        auth = (lambda user, word: bool(user.strip()) and _same(word, password)) if password else None
        _, address, _ = app.launch(
            hosts=tuple(given.allow_host), server_name=given.host, server_port=given.port, auth=auth,
            root_path=given.root_path, prevent_thread_lock=True,
            auth_message="Your name, and the password you were given." if auth else None,
        )  # fmt: skip
        print(f"the A/B app on {app.lab}: {address}   (Ctrl-C ends it)", flush=True)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        app.block_thread()
    except (store.UserError, OSError) as error:
        print(f"arena: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
