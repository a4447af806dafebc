"""Voices behind an OpenAI-compatible `/v1/audio/speech` endpoint: vendors, and servers for open models (vLLM, Kokoro-FastAPI,
Speaches …).

    load_tts("openai:http://127.0.0.1:8880/v1#kokoro::openai/whisper-tiny.en")

An endpoint tells no word times, so a recogniser, named behind `::`, aligns them. A key is read from the environment variable
SALAD_SPEECH_KEY. Speech is asked for as WAV, with the seed, which not every server heeds: the same words may come out
otherwise. It counts as English speech, whatever the voice."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from functools import cached_property

import numpy as np

from salad.errors import SaladError
from salad.retry import retry_after
from salad.speech.audio import Unusable, decode
from salad.speech.utterance import SAMPLE_RATE, Utterance

KEY = "SALAD_SPEECH_KEY"  # pragma: allowlist secret (the name of a variable)
VOICES = ("alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse")  # OpenAI's
TRIES = 4
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)


class SpeechEndpoint:
    """url: up to and with `/v1`; model: as the endpoint calls it; recogniser: what aligns its words.

    `voices`: those of `GET /audio/voices` where the server has that, else OpenAI's names; a voice that is not among them is
    asked for all the same, and what the server says of it is the error. What passes (429, 5xx, a lost connection) is asked for
    again, four times in all, after `Retry-After` or ever longer pauses. Raises SaladError."""

    def __init__(self, url: str, model: str, recogniser: str | None, timeout_s: float = 120.0, pause_s: float = 1.0):
        if not url.startswith(("http://", "https://")) or not model:
            raise SaladError(f"endpoint {url}#{model}: write it as openai:http://HOST:PORT/v1#MODEL::RECOGNISER")
        if recogniser is None:
            raise SaladError("an endpoint tells no word times: name a recogniser that aligns its words, as "
                             f"openai:{url}#{model}::openai/whisper-tiny.en")  # fmt: skip
        self.url, self.model, self.recogniser = url.rstrip("/"), model, recogniser
        self.timeout_s, self.pause_s = timeout_s, pause_s
        self.name = f"openai:{self.url}#{model}::{recogniser}"

    @cached_property
    def voices(self) -> tuple[str, ...]:
        """What the server lists, else OpenAI's own names."""
        try:
            with urllib.request.urlopen(self._request("/audio/voices"), timeout=self.timeout_s) as answer:
                listed = json.load(answer)
        except (OSError, ValueError, http.client.HTTPException):
            return VOICES
        listed = listed.get("voices", []) if isinstance(listed, dict) else listed
        names = [one.get("id") or one.get("name") if isinstance(one, dict) else one for one in listed]
        return tuple(name for name in names if isinstance(name, str)) or VOICES

    @cached_property
    def _aligner(self):
        from salad.speech.check import load_recogniser

        return load_recogniser(self.recogniser)

    def speak(self, spoken: str, voice: str, seed: int = 0) -> Utterance:
        """Raises SaladError where the server refuses, or answers with no sound."""
        from salad.speech.align import align
        from salad.speech.shar import to_rate

        if not any(c.isalnum() for c in spoken):
            return Utterance(np.zeros(0, np.float32), SAMPLE_RATE, [], ["empty"])
        data = self._post({"model": self.model, "input": spoken, "voice": voice, "response_format": "wav", "seed": seed})
        try:
            sound, rate = decode(data)
        except Unusable as error:
            why = ": ".join(map(str, error.args))
            raise SaladError(f"{self.url} answered with no sound ({len(data)} bytes): {' '.join(why.split())}") from error
        samples = to_rate(sound, rate)
        if not len(samples):
            return Utterance(samples, SAMPLE_RATE, [], ["empty"])
        return Utterance(samples, SAMPLE_RATE, align(samples, spoken, self._aligner).words)

    def _request(self, path: str, body: dict | None = None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json", "Accept": "audio/wav, application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        return urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode(), headers)

    def _post(self, body: dict) -> bytes:
        why = ""
        for attempt in range(TRIES):
            pause = self.pause_s * 2**attempt
            try:
                with urllib.request.urlopen(self._request("/audio/speech", body), timeout=self.timeout_s) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                why = f"{error.code} {error.reason}: {' '.join(error.read(2000).decode(errors='replace').split())[:300]}"
                if error.code not in PASSING:
                    raise SaladError(f"{self.url} will not speak {body['input'][:40]!r} in {body['voice']!r}: {why}") from None
                after = retry_after(error.headers.get("Retry-After"))
                pause = pause if after is None else after
            except (OSError, http.client.HTTPException) as error:
                why = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt + 1 < TRIES:
                time.sleep(pause)
        raise SaladError(f"{self.url} did not speak after {TRIES} tries: {why}; the same command goes on from here")
