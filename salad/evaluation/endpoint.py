"""A contender behind an OpenAI-compatible chat endpoint that hears audio (vLLM, vendors): it answers in words.

Speech goes as `input_audio` parts, WAV in base64. A key is read from the environment variable SALAD_ENDPOINT_KEY."""

import base64
import io
import json
import os
import string
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from salad import interrupts
from salad.errors import SaladError
from salad.evaluation.scoring import Prompt, Recording

KEY = "SALAD_ENDPOINT_KEY"
ASK = "Which of these continues or answers it best? Say its letter only."
TRIES, AT_ONCE = 4, 8


class Endpoint:
    """url: up to and with `/v1`; model: as the endpoint calls it."""

    scores = False
    modalities = ("text", "speech", "cascade")
    sample_rate = 16_000
    run_id = step = None

    def __init__(self, url: str, model: str, name: str, timeout_s: float = 120.0, pause_s: float = 1.0):
        if not url.startswith(("http://", "https://")) or not model:
            raise SaladError(f"endpoint {url}#{model}: write it as endpoint:http://HOST:PORT/v1#MODEL")
        self.url, self.model, self.name = url.rstrip("/") + "/chat/completions", model, name
        self.timeout_s, self.pause_s = timeout_s, pause_s

    def loglikelihoods(self, prompts, continuations, progress=None):
        raise SaladError(f"{self.name} answers in words only: an endpoint gives no log-likelihoods of choices")

    def choose(self, prompts: list[Prompt], choices: list[list[str]], progress=None) -> list[str]:
        """An answer in words to each prompt with its choices lettered."""
        asked = [
            [*prompt, "\n".join(["", "", ASK, *(f"{a}. {c}" for a, c in zip(string.ascii_uppercase, some, strict=False))])]
            for prompt, some in zip(prompts, choices, strict=True)
        ]
        return self.generate(asked, 16, (), progress=progress)

    def generate(self, prompts, max_new_tokens=64, until=None, temperature=0.0, seed=0, progress=None) -> list[str]:
        told = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for text in pool.map(lambda p: self._ask(p, max_new_tokens, until, temperature, seed), prompts):
                told.append(text)
                if progress is not None:
                    progress(len(told), len(prompts))
        return told

    def _ask(self, prompt: Prompt, max_new_tokens, until, temperature, seed) -> str:
        body = {
            "model": self.model, "temperature": temperature, "seed": seed, "max_tokens": max_new_tokens,
            "messages": [{"role": "user", "content": self._content(prompt)}],
        }  # fmt: skip
        if until:
            body["stop"] = list(until)[:4]  # the protocol takes four
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        for attempt in range(TRIES):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                    return json.load(answer)["choices"][0]["message"]["content"] or ""
            except urllib.error.HTTPError as error:
                told = f"{error.code} {error.reason}: {error.read(200).decode(errors='replace')}"
                if error.code != 429 and error.code < 500:
                    break
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                told = f"{type(error).__name__}: {error}"
            if attempt < TRIES - 1:
                time.sleep(self.pause_s * 2**attempt)
        raise SaladError(f"{self.name} at {self.url} does not answer: {' '.join(told.split())[:300]}")

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
