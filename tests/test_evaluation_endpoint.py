"""An endpoint as they are in the wild: busy, of another dialect, thinking aloud. A server on this machine speaks as they do."""

import email.utils
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_evaluation import CHOICES, write
from tiny import lab

import store
from salad import SaladError
from salad.evaluation import statistics
from salad.evaluation.contenders import outside
from salad.evaluation.endpoint import TOKENS, Endpoint
from salad.evaluation.run import evaluate
from salad.retry import retry_after

ITEMS = [
    {"item_id": f"e-{n}", "context": f"What is number {n}?", "choices": CHOICES, "answer": n % 3} for n in range(40)
]  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            code, result, headers = self.server.script(len(self.server.seen), body)
        data = json.dumps(result).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.script, self.lock = [], script, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()


def says(content="B", finish="stop", **message):
    return 200, {"choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}]}, {}


@pytest.fixture
def serve():
    made = []

    def start(script):
        made.append(Server(script))
        return made[-1], f"http://127.0.0.1:{made[-1].server_port}/v1"

    yield start
    for item in made:
        item.shutdown()
        item.server_close()


@pytest.fixture
def place(tmp_path):
    folder = lab(tmp_path / "lab")
    write(folder, "wild", ITEMS)
    return folder


def count(place, where="true"):
    return store.connect(place).execute(f"select count(*) from evaluations where {where}").fetchone()[0]


def test_a_server_that_refuses_max_tokens_is_asked_with_max_completion_tokens(place, serve):
    def script(n, body):
        if "max_tokens" in body:
            return 400, {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                                   "'max_completion_tokens' instead.", "param": "max_tokens"}}, {}  # fmt: skip
        return says()

    server, url = serve(script)
    who = Endpoint(url, "thinker", "thinker")
    evaluate(place, who, ["wild"], ("text",))
    assert count(place) == 40 and server.seen[-1]["max_completion_tokens"] == 16
    assert sum("max_tokens" in body for body in server.seen) <= 8  # once for each that was asked at the same time


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_waited_for_as_it_says(serve, code):
    def script(n, body):
        return (code, {"error": "busy"}, {"Retry-After": "0.2"}) if n <= 2 else says("A book.")

    server, url = serve(script)
    who = Endpoint(url, "m", "m", pause_s=30)
    begun = time.monotonic()
    assert who.generate([["What?"]]) == ["A book."] and len(server.seen) == 3
    assert time.monotonic() - begun >= 0.4


def test_waiting_ends_at_a_stated_limit_and_the_evaluation_goes_on_from_there(place, serve):
    state = {"busy": True}

    def script(n, body):
        return (429, {"error": "quota"}, {"Retry-After": "3600"}) if state["busy"] and n > 32 else says()

    server, url = serve(script)
    who = Endpoint(url, "m", "m", wait_s=60)
    with pytest.raises(SaladError, match="429.*asks to wait longer than 60 s: the same command goes on later") as error:
        evaluate(place, who, ["wild"], ("text",))
    assert "\n" not in str(error.value) and count(place) == 32  # what was answered is kept
    state["busy"], before = False, len(server.seen)
    evaluate(place, who, ["wild"], ("text",))
    asked = [body["messages"][0]["content"].partition("\n")[0] for body in server.seen[before:]]
    assert count(place) == 40 and set(asked) == {item["context"] for item in ITEMS[32:]}  # and nothing is asked twice


def test_retry_after_is_a_number_or_a_date():
    assert retry_after("2.5") == 2.5 and retry_after("-1") == 0 and retry_after(None) is None and retry_after("soon") is None
    assert 50 < retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 61
    assert retry_after(email.utils.formatdate(time.time() - 60, usegmt=True)) == 0


def test_thoughts_are_no_answer_and_how_it_ended_is_told(place, serve):
    thought = "The letter is B. So the answer is B."

    def script(n, body):
        return says(None, "length", reasoning_content=thought) if n % 2 else says("", "length", reasoning=thought)

    _, url = serve(script)
    evaluate(place, outside(f"endpoint:{url}#thinker", "thinker", place), ["wild"], ("text",))
    (row,) = statistics.summary(place, "thinker", None, None)
    assert row["unread"] == 1 and row["accuracy"] == 0 and row["unread_ended"] == "length 40"
    assert count(place, "finish_reason = 'length' and prediction = '' and not parsed") == 40


def test_content_in_parts_is_read_and_thoughts_before_it_are_passed_over(serve):
    parts = [{"type": "thinking", "text": "A?"}, {"type": "text", "text": "<think>A?</think>"}, {"type": "text", "text": "B"}]
    _, url = serve(lambda n, body: says(parts))
    from salad.evaluation.contenders import parse_choice

    (answer,) = Endpoint(url, "m", "m").choose([["What?"]], [CHOICES])
    assert parse_choice(answer, CHOICES) == 1 and answer.finish_reason == "stop"


def test_the_most_tokens_of_an_answer_are_a_setting_and_belong_to_what_was_asked(serve, monkeypatch):
    server, url = serve(lambda n, body: says())
    few = Endpoint(url, "m", "m")
    monkeypatch.setenv(TOKENS, "2048")
    many = Endpoint(url, "m", "m")
    many.choose([["What?"]], [CHOICES])
    assert server.seen[-1]["max_tokens"] == 2048 and many.fingerprint != few.fingerprint
    monkeypatch.setenv(TOKENS, "lots")
    with pytest.raises(SaladError, match="SALAD_ENDPOINT_TOKENS=lots"):
        Endpoint(url, "m", "m")


def test_an_answer_ends_before_every_stop_string_whatever_the_server_takes(serve):
    server, url = serve(lambda n, body: says("one|two"))
    assert Endpoint(url, "m", "m").generate([["What?"]], until=("a1", "b2", "c3", "d4", "|")) == ["one"]
    assert server.seen[-1]["stop"] == ["a1", "b2", "c3", "d4"]  # the protocol takes four


@pytest.mark.parametrize("broken", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": None}]}, [1], "x"])
def test_a_broken_reply_is_one_line(serve, broken):
    _, url = serve(lambda n, body: (200, broken, {}))
    with pytest.raises(SaladError, match="does not answer") as error:
        Endpoint(url, "m", "m", pause_s=0.001).generate([["What?"]])
    assert "\n" not in str(error.value)
