"""A contender behind an OpenAI-compatible chat endpoint that hears audio (vLLM, vendors): it answers in words.

Speech goes as `input_audio` parts, WAV in base64. A key is read from the environment variable SALAD_ENDPOINT_KEY, the most
tokens of an answer that names a choice from SALAD_ENDPOINT_TOKENS (16; a reasoning model needs more, for its thoughts count)."""

import base64
import http.client
import io
import json
import os
import string
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from salad import interrupts
from salad.errors import SaladError
from salad.evaluation.scoring import Prompt, Recording
from salad.models.decoding import before_stop
from salad.retry import retry_after
from store.ids import digest

KEY = "SALAD_ENDPOINT_KEY"  # pragma: allowlist secret (the name of a variable)
TOKENS = "SALAD_ENDPOINT_TOKENS"  # pragma: allowlist secret
ASK = "Which of these continues or answers it best? Say its letter only."
TRIES, AT_ONCE = 4, 8
LONGEST_WAIT_S = 600.0  # that one answer waits in all for a server that is busy (429, 503)


class Reply(str):
    """An answer in words; finish_reason: how it ended, as the endpoint says (stop, length, content_filter …)."""

    finish_reason: str | None

    def __new__(cls, text: str, finish_reason: str | None = None) -> "Reply":
        made = super().__new__(cls, text)
        made.finish_reason = finish_reason
        return made


class Endpoint:
    """url: up to and with `/v1`; model: as the endpoint calls it.

    A server that refuses `max_tokens` is asked with `max_completion_tokens`. One that is busy (429, 503) is asked again
    after what it says in `Retry-After`, else after ever longer pauses, for `wait_s` seconds in all; other failures of the
    server and of the network four times. Then it is a SaladError: what was answered before is kept, and the same
    command goes on from there."""

    scores = False
    modalities = ("text", "speech", "cascade")
    sample_rate = 16_000
    run_id = step = None
    chunk = 4 * AT_ONCE  # answers that are kept together: they are paid for

    def __init__(self, url: str, model: str, name: str, timeout_s: float = 120.0, pause_s: float = 1.0,
                 wait_s: float = LONGEST_WAIT_S):  # fmt: skip
        if not url.startswith(("http://", "https://")) or not model:
            raise SaladError(f"endpoint {url}#{model}: write it as endpoint:http://HOST:PORT/v1#MODEL")
        longest = os.environ.get(TOKENS, "16")
        if not longest.isdecimal() or not int(longest):
            raise SaladError(f"{TOKENS}={longest}: it is a number of tokens")
        self.url, self.model, self.name = url.rstrip("/") + "/chat/completions", model, name
        self.timeout_s, self.pause_s, self.wait_s, self.longest_choice = timeout_s, pause_s, wait_s, int(longest)
        self._limit = "max_tokens"  # what the server calls the most tokens of an answer
        self.fingerprint = digest({"endpoint": self.url, "model": model, "asked": [ASK, self.longest_choice]})

    def loglikelihoods(self, prompts, continuations, progress=None):
        raise SaladError(f"{self.name} answers in words only: an endpoint gives no log-likelihoods of choices")

    def choose(self, prompts: list[Prompt], choices: list[list[str]], progress=None) -> list[str]:
        """An answer in words to each prompt with its choices lettered."""
        asked = [
            [*prompt, "\n".join(["", "", ASK, *(f"{a}. {c}" for a, c in zip(string.ascii_uppercase, some, strict=False))])]
            for prompt, some in zip(prompts, choices, strict=True)
        ]
        return self.generate(asked, self.longest_choice, (), progress=progress)

    def generate(self, prompts, max_new_tokens=64, until=None, temperature=0.0, seed=0, progress=None) -> list[str]:
        """An answer to each prompt (`Reply`), ending before any of `until`. What a reasoning model thinks is no answer: where
        it has said nothing beside, the answer is empty."""
        answers: list[str] = []
        stopped = threading.Event()
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            asked = [pool.submit(self._ask, p, max_new_tokens, until, temperature, seed, stopped) for p in prompts]
            for answer in asked:
                answers.append(answer.result())
                if progress is not None:
                    progress(len(answers), len(prompts))
        finally:
            stopped.set()  # who waits for a busy server waits no more
            pool.shutdown(wait=False, cancel_futures=True)
        return answers

    def _ask(self, prompt: Prompt, max_new_tokens, until, temperature, seed, stopped: threading.Event) -> Reply:
        body = {
            "model": self.model, "temperature": temperature, "seed": seed,
            "messages": [{"role": "user", "content": self._content(prompt)}],
        }  # fmt: skip
        if until:
            body["stop"] = list(until)[:4]  # the protocol takes four
        failed, waited = 0, 0.0
        while not stopped.is_set():
            limit = self._limit
            try:
                return self._reply(self._post(body | {limit: max_new_tokens}), until or ())
            except urllib.error.HTTPError as error:
                detail = " ".join(error.read(2000).decode(errors="replace").split())[:300]
                message = f"{error.code} {error.reason}: {detail}"
                if error.code in (400, 422) and limit == "max_tokens" and "max_tokens" in detail:
                    self._limit = "max_completion_tokens"
                    continue
                if error.code in (429, 503):
                    pause = retry_after(error.headers.get("Retry-After"))
                    pause = self.pause_s * 2 ** min(failed, 6) if pause is None else pause
                    failed, waited = failed + 1, waited + pause
                    if waited <= self.wait_s:
                        stopped.wait(pause)
                        continue
                    message += f"; it asks to wait longer than {self.wait_s:.0f} s: the same command goes on later"
                    break
                if error.code < 500:
                    break
            except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, http.client.HTTPException) as error:
                message = f"{type(error).__name__}: {error}"
            failed += 1
            if failed >= TRIES:
                break
            stopped.wait(self.pause_s * 2 ** (failed - 1))
        if stopped.is_set():
            raise SaladError(f"{self.name} was not asked to the end")
        raise SaladError(f"{self.name} at {self.url} does not answer: {' '.join(message.split())[:400]}")

    def _post(self, body: dict) -> dict:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
            return json.load(answer)

    @staticmethod
    def _reply(answer: dict, until) -> Reply:
        """`content` of the first choice; `reasoning_content` is no answer."""
        choice = answer["choices"][0]
        content = choice["message"].get("content") or ""
        if isinstance(content, list):  # in parts
            content = "".join(part.get("text") or "" for part in content if part.get("type", "text") in ("text", "output_text"))
        return Reply(before_stop(content, tuple(until)), choice.get("finish_reason"))

    def _content(self, prompt: Prompt) -> list[dict] | str:
        parts: list[dict] = []
        for part in prompt:
            if isinstance(part, Recording):
                parts.append({"type": "input_audio", "input_audio": {"data": _wav(part, self.sample_rate), "format": "wav"}})
            elif parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += part
            elif part:
                parts.append({"type": "text", "text": part})
        return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


@interrupts.held()
def _wav(recording: Recording, sample_rate: int) -> str:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, recording.samples, sample_rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()
