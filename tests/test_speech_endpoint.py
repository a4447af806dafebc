"""Voices behind `/v1/audio/speech`: a server on this machine answers as such servers do, with espeak's sound."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
from zoo import recogniser_of

from salad import SaladError, parts
from salad.speech import TTS, load_tts
from salad.speech.espeak import Espeak
from salad.speech.speech_endpoint import KEY, VOICES

TEXT = "The otter eats fish."


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, code: int, data: bytes, **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        listed = self.server.listed
        self.answer(404, b"{}") if listed is None else self.answer(200, json.dumps(listed).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        if self.server.busy:
            self.server.busy -= 1
            self.answer(503, b"warming up", Retry_After="0")
        elif body["voice"] == "nobody":
            self.answer(400, json.dumps({"error": "no voice 'nobody'"}).encode())
        elif body["voice"] == "text":
            self.answer(200, b"I cannot say that")
        else:
            spoken = Espeak().speak(body["input"], "en-us", 0)
            file = io.BytesIO()
            soundfile.write(file, np.repeat(spoken.samples, 2), 32_000, format="WAV", subtype="PCM_16")
            data = bytearray(file.getvalue())
            at = data.index(b"data") + 4
            data[4:8] = data[at : at + 4] = b"\xff\xff\xff\xff"  # a stream's header does not know how long it will be
            self.answer(200, bytes(data))


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.seen, made.busy, made.listed = [], 0, None
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def ears(tmp_path_factory):
    return str(recogniser_of(tmp_path_factory.mktemp("ears"), "ctc-wav2vec2"))


def spec(server, ears: str) -> str:
    return f"openai:http://127.0.0.1:{server.server_port}/v1#kokoro::{ears}"


def test_an_endpoint_speaks_and_its_words_are_aligned(server, ears, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    engine = load_tts(spec(server, ears))
    assert isinstance(engine, TTS) and engine.name == spec(server, ears) and engine.voices == VOICES
    utterance = engine.speak(TEXT, "alloy", 7)
    path, body, key = server.seen[0]
    assert path == "/v1/audio/speech" and key == "Bearer secret"
    assert body == {"model": "kokoro", "input": TEXT, "voice": "alloy", "response_format": "wav", "seed": 7}
    own = Espeak().speak(TEXT, "en-us", 0)
    assert utterance.sample_rate == 16_000 and abs(len(utterance.samples) - len(own.samples)) < 10
    assert np.corrcoef(utterance.samples[: len(own.samples)], own.samples[: len(utterance.samples)])[0, 1] > 0.99
    assert [word.word for word in utterance.words] == ["The", "otter", "eats", "fish."]
    assert all(TEXT[w.char_start : w.char_end] == w.word and w.start_s <= w.end_s for w in utterance.words)
    assert engine.speak("...", "alloy", 0).flags == ["empty"] and len(server.seen) == 1


@pytest.mark.parametrize("listed", [{"voices": ["af_heart", "bm_fable"]}, [{"id": "af_heart"}, {"name": "bm_fable"}]])
def test_a_server_that_lists_its_voices_is_asked_for_them(server, ears, listed):
    server.listed = listed
    assert load_tts(spec(server, ears)).voices == ("af_heart", "bm_fable")


def test_what_passes_is_asked_again_and_what_does_not_is_one_line(server, ears):
    engine = load_tts(spec(server, ears))
    engine.pause_s = 0.0
    server.busy = 2
    assert engine.speak(TEXT, "alloy", 0).words and len(server.seen) == 3
    server.busy = 9
    refusals = {"alloy": "after 4 tries: 503 Service Unavailable: warming up", "nobody": "400 Bad Request.*no voice 'nobody'",
                "text": "answered with no sound"}  # fmt: skip
    for voice, why in refusals.items():
        with pytest.raises(SaladError, match=why) as error:
            engine.speak(TEXT, voice, 0)
        assert "\n" not in str(error.value)
        server.busy = 0
    server.server_close()
    server.shutdown()


@pytest.mark.parametrize(("name", "why"), [
    ("openai:http://127.0.0.1:1/v1#kokoro", "name a recogniser"), ("openai:http://127.0.0.1:1/v1::x", "write it as openai:http"),
    ("openai:ftp://nowhere#m::x", "write it as openai:http"),
])  # fmt: skip
def test_an_incomplete_name_says_what_it_lacks(name, why):
    with pytest.raises(SaladError, match=why):
        load_tts(name)


def test_an_address_that_a_labs_data_names_is_sent_nothing_until_it_is_allowed(monkeypatch):
    monkeypatch.setenv(parts.VARIABLE, "")
    name = "openai:http://somewhere.example/v1#m::openai/whisper-tiny.en"
    with pytest.raises(SaladError, match="which texts would be sent to.*--allow-parts openai:http://somewhere"):
        parts.check(name, "the lab")
    parts.trust(name)
    parts.check(name, "the lab")
