"""Ways into the A/B app, each tried: files of the server, other hosts' names and pages, guessed passwords, floods, forged
blind votes, saved comparisons that are none, and uploads that stay behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
import soundfile
from arena_lab import ITEMS, make
from gradio_client import Client
from gradio_client.exceptions import AppError
from markupsafe import Markup

import store
from workbench import arena
from workbench.arena import gate, pages, saved, service, uploads
from workbench.markup import markdown, plain

EVIL = "<img src=x onerror=\"document.title='in'\">"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return make(tmp_path_factory.mktemp("arena") / "lab")


@pytest.fixture(scope="module")
def app(lab):
    made = arena.build(lab)
    _, made.address, _ = made.launch(prevent_thread_lock=True)
    yield made
    made.close(verbose=False)


def call(app, *data) -> str:
    """The events that the endpoint `ask` answers with."""
    begun = httpx.post(f"{app.address}gradio_api/call/ask", json={"data": list(data)}, timeout=60)
    return httpx.get(f"{app.address}gradio_api/call/ask/{begun.json()['event_id']}", timeout=60).text


# --- files ---


def test_no_shape_of_a_path_reads_a_file_of_the_server(app, lab, tmp_path):
    private = tmp_path / "private.wav"
    soundfile.write(private, np.sin(np.arange(16_000) / 20) * 0.5, 16_000)
    here = uploads.folder()
    (here / "link.wav").symlink_to(private)
    (here / "out").symlink_to(tmp_path)
    os.mkfifo(here / "pipe.wav")
    meta = {"_type": "gradio.FileData"}
    for path in (str(private), 3, 0, True, [str(private)], {"path": str(private)}, str(here), str(here / "link.wav"),
                 str(here / "out" / "private.wav"), f"{here}/../{tmp_path.name}/private.wav", str(here / "pipe.wav"),
                 "file://" + str(private), "http://127.0.0.1:1/x.wav", "\0", "x" * 5000, "",
                 str(here / uploads.LOCK)):  # fmt: skip
        for audio in ({"path": path}, {"path": path, "meta": meta}, {"path": path, "url": None, "orig_name": "x.wav"}):
            events = call(app, "", audio, "", "", "", "", False, False, 0, 0)
            assert "event: error" in events and "event: complete" not in events, (path, audio)
        with pytest.raises(store.UserError):
            uploads.uploaded(path)
    for audio in ("x.wav", [1], 7):
        assert "event: error" in call(app, "", audio, "", "", "", "", False, False, 0, 0)
    assert httpx.get(app.address).status_code == 200  # the event loop lives: no descriptor of its was closed
    assert "event: complete" in call(app, ITEMS[0][0], None, "", "", "", "", False, False, 0, 0)


def test_an_upload_is_asked(app, lab, tmp_path):
    sound = tmp_path / "question.wav"
    soundfile.write(sound, app.service.listener.ask(item_id="tiny-0").samples, 16_000)
    path = httpx.post(f"{app.address}gradio_api/upload", files={"files": ("question.wav", sound.read_bytes())}).json()[0]
    assert uploads.uploaded(path).read_bytes() == sound.read_bytes()
    assert "event: complete" in call(app, "", {"path": path}, "", "", "", "", False, False, 0, 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (({"a": 1}, None, "", "", "", "", False, False, 0, 0), "written in words"),
        (("Who?", None, "", "", "", "../../etc/passwd", False, False, 0, 0), "no voice"),
        (("Who?", None, "", "", "", 5, False, False, 0, 0), "written in words"),
        (("Who?", None, "", 5, "", "", False, False, 0, 0), "no side"),
        (("Who?", None, "", "", "", "", False, False, -1, 0), "temperature"),
        (("Who?", None, "", "", "", "", False, False, "hot", 0), "temperature"),
        (("Who?", None, "", "", "", "", False, False, 0, 1e300), "seed"),
        (("Who?", None, "", "", "", "", False, False, 0, "x"), "seed"),
        (("", None, {"b": 2}, "", "", "", False, False, 0, 0), "written in words"),
        (("", None, "", "teacher/text", "teacher/text", "", False, True, 0, 0), "at least two sides"),
    ],
)
def test_what_is_no_question_gets_one_line(app, data, words, capfd):
    events = call(app, *data)
    assert "event: error" in events and words in events
    assert "Traceback" not in capfd.readouterr().err


# --- who may come in ---


def through(request: dict, body: bytes = b"", hosts=("localhost", "127.0.0.1"), status=200, clock=time.monotonic, made=None):
    """(status, headers) of a request at the gate before an app that reads the whole body."""
    answered = []

    async def inside(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    gated = made or gate.Gate(inside, frozenset(hosts), uploads.folder(), clock)
    parts = [body[i : i + 2**16] for i in range(0, len(body), 2**16)] or [b""]

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        answered.append(message)

    headers = {"host": "127.0.0.1:7860"} | request.get("headers", {})
    scope = {"type": "http", "method": request.get("method", "GET"), "path": request.get("path", "/"),
             "client": (request.get("client", "10.0.0.1"), 1),
             "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}  # fmt: skip
    asyncio.run(gated(scope, receive, send))
    return answered[0]["status"], dict(answered[0]["headers"])


def test_a_name_that_another_site_gives_this_machine_is_refused():
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "", "[", "a@b"):
        assert through({"headers": {"host": host}})[0] == 421, host
    for host in ("localhost", "LOCALHOST:7860", "localhost.", "127.0.0.1", "[::1]:7860", "192.168.1.4:7860"):
        assert through({"headers": {"host": host}})[0] == 200, host
    assert through({"headers": {"host": "lab.example"}}, hosts=gate.own_names("127.0.0.1", ("Lab.Example",)))[0] == 200


def test_another_pages_requests_are_refused():
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example", ""):
        assert through({"method": "POST", "headers": {"origin": origin}})[0] == 403, origin
    for origin, more in (
        ("http://127.0.0.1:7860", {}),
        ("http://localhost:3000", {}),
        ("https://lab.example", {"x-forwarded-host": "lab.example"}),
    ):
        assert through({"method": "POST", "headers": {"origin": origin} | more})[0] == 200, origin
    assert through({"headers": {"origin": "https://evil.example"}})[0] == 200  # it cannot read the answer


def test_a_request_holds_no_more_than_it_needs(monkeypatch):
    big = bytes(gate.LARGEST_REQUEST + 1)
    assert through({"method": "POST", "path": "/gradio_api/queue/join"}, big)[0] == 413  # whatever its header tells
    assert through({"method": "POST", "headers": {"content-length": str(2**40)}})[0] == 413
    assert through({"method": "POST", "path": "/gradio_api/upload"}, big)[0] == 200
    (uploads.folder() / "much.bin").write_bytes(bytes(1000))
    monkeypatch.setattr(gate, "FOLDER_LIMIT", 999)
    assert through({"method": "POST", "path": "/gradio_api/upload"})[0] == 507
    assert through({"method": "POST", "path": "/gradio_api/queue/join"})[0] == 200
    (uploads.folder() / "much.bin").unlink()


def test_passwords_cannot_be_guessed_fast():
    now = [0.0]
    throttle = gate.Throttle(lambda: now[0])
    tried = 0
    while now[0] < 600:  # ten minutes of a client that tries whenever it may
        wait = throttle.wait_s("10.0.0.1")
        tried += wait == 0
        now[0] += wait or 0.001
    assert tried < 30
    assert throttle.wait_s("10.0.0.2") == 0  # another is not kept out
    throttle.passed("10.0.0.2")
    many = sum(throttle.wait_s(f"10.0.{i // 250}.{i % 250}") == 0 for i in range(1000))
    assert many <= gate.Throttle.ALL
    now[0] += 61
    assert throttle.wait_s("10.9.9.9") == 0


def test_a_hundred_tries_at_once_are_a_hundred_tries():
    made = gate.Throttle(lambda: 5.0)
    assert sum(made.wait_s("10.0.0.1") == 0 for _ in range(100)) == gate.Throttle.FREE + 1


def test_the_app_with_a_password_waits_after_wrong_ones(lab):
    made = arena.build(lab)
    _, address, _ = made.launch(prevent_thread_lock=True, auth=lambda user, word: word == "thyme", hosts=("lab.example",))
    try:
        wrong = {"username": "a", "password": "sage"}  # pragma: allowlist secret
        result = [httpx.post(f"{address}login", data=wrong).status_code for _ in range(12)]
        assert set(result[:6]) == {400} and set(result[6:]) == {429}
        late = httpx.post(f"{address}login", data={"username": "a", "password": "thyme"})  # pragma: allowlist secret
        assert late.status_code == 429 and int(late.headers["retry-after"]) >= 1
        assert httpx.post(f"{address}gradio_api/call/ask", json={"data": []}).status_code == 401
        assert httpx.get(address, headers={"host": "evil.example"}).status_code == 421
        assert httpx.get(address, headers={"host": "lab.example"}).status_code == 200
    finally:
        made.close(verbose=False)


# --- blind votes ---


def test_a_blind_vote_cannot_be_forged(app, lab):
    client, sides = Client(app.address, verbose=False), set()
    for _ in range(8):
        reply = client.predict(
            blind=True, seed=5, left="teacher/text", right="stage2_active/speech", item="tiny-0", api_name="/ask"
        )
        assert "seed" not in reply and not set(reply["left"]) - {"text"}
        made = app.service.get(reply["comparison"])
        sides.add(made.answers["left"].modality)
        begun = time.monotonic()
    assert sides == {"text", "speech"}  # the same request, both ways round
    with pytest.raises(AppError, match="listen to the question"):
        client.predict(comparison=reply["comparison"], choice="left", api_name="/vote")
    assert app.service.listened(reply["comparison"]) > 0 and not made.heard
    client.predict(comparison=reply["comparison"], api_name="/heard")
    assert time.monotonic() - begun > made.question.duration_s - 2 * service.EARLY_S
    client.predict(comparison=reply["comparison"], choice="left", api_name="/vote")
    with pytest.raises(AppError, match="has its vote already"):
        client.predict(comparison=reply["comparison"], choice="right", api_name="/vote")
    for nothing in ("a000000000000", {"a": 1}, None, 7):
        with pytest.raises(AppError, match="no longer exists"):
            client.predict(comparison=nothing, choice="left", api_name="/vote")


# --- what stays behind ---

HOLD = "from workbench.arena import uploads; print(uploads.folder(), flush=True); "


def begin(parent, more: str):
    env = {**os.environ, "GRADIO_TEMP_DIR": str(parent)}
    process = subprocess.Popen([sys.executable, "-c", HOLD + more], stdout=subprocess.PIPE, text=True, env=env)
    folder = process.stdout.readline().strip()
    return process, folder


def test_uploads_go_with_the_app_and_what_a_killed_one_left_with_the_next(tmp_path):
    killed, left = begin(tmp_path, "import time; time.sleep(60)")
    running, kept = begin(tmp_path, "import time; time.sleep(60)")
    (tmp_path / "salad-arena-link").symlink_to(kept)
    (tmp_path / "other").mkdir()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(20)
        assert os.path.isdir(left)
        ended, own = begin(tmp_path, "")
        assert ended.wait(20) == 0
        assert not os.path.exists(left) and not os.path.exists(own)
        assert os.path.isdir(kept) and (tmp_path / "other").is_dir() and (tmp_path / "salad-arena-link").is_symlink()
    finally:
        running.kill()
        running.wait(20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_app_that_is_asked_to_end_takes_its_uploads_with_it(lab, tmp_path, number):
    env = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-m", "workbench.arena", "--lab", str(lab), "--device", "cpu"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)  # fmt: skip
    line = process.stdout.readline()
    assert "the A/B app on" in line, process.stderr.read()
    (folder,) = tmp_path.glob(uploads.PREFIX + "*")
    address = line.split(": ")[1].split()[0]
    httpx.post(f"{address}gradio_api/upload", files={"files": ("x.wav", b"RIFF")})
    assert list(folder.rglob("x.wav"))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert not folder.exists() and "Traceback" not in errors


# --- words stay words ---


def poisoned(name: str) -> dict:
    answer = {"contender": EVIL, "run_id": EVIL, "step": 3, "modality": EVIL, "text": EVIL, "ended": EVIL, "first_s": 0.1,
              "total_s": 0.2, "n_tokens": 1, "d": 0.5, "gives_away": True,
              "tokens": [{"text": EVIL, "d": 0.5, "ours": [[EVIL, 0.5]], "teachers": [[EVIL, 0.5]]}]}  # fmt: skip
    return {"comparison": name, "at": "2026-01-01T00:00:00+00:00", "question_id": EVIL, "text": EVIL, "source": EVIL,
            "voice": EVIL, "duration_s": 1.0, "notes": [EVIL], "blind": False, "choice": "left", "seed": 1, "heard": EVIL,
            "cer": 0.1, "answer": EVIL, "left": answer, "right": answer, "cascade": answer}  # fmt: skip


def test_no_field_of_a_saved_comparison_is_markup(tmp_path):
    (tmp_path / "arena").mkdir()
    path = tmp_path / "arena" / "a0123456789ab.json"
    path.write_text(json.dumps(poisoned("a0123456789ab")))
    facts = saved.read(path)
    for page in (
        *pages.cards(facts),
        pages.question_html(facts),
        pages.card(facts["left"], EVIL, veiled=True),
        pages.card(None, EVIL),
    ):
        assert "<img" not in page and "&lt;img" in page
    for wrong in ({"left": None}, {"at": EVIL}, {"duration_s": EVIL}, {"comparison": "a1"}, {"choice": EVIL}, {"notes": 5}):
        path.write_text(json.dumps(poisoned("a0123456789ab") | wrong))
        with pytest.raises(store.UserError, match="not a saved comparison"):
            saved.read(path)
    for broken in ("", "[]", "{", '{"left": NaN}', "null"):
        path.write_text(broken)
        with pytest.raises(store.UserError, match="not a saved comparison"):
            saved.read(path)


def test_words_in_markdown_are_words():
    from markdown_it import MarkdownIt

    for words in (EVIL, "[x](javascript:alert(1))", "`<b>`", "*a* _b_ **c** # d", "a\nb\n# c", "<script>", "&lt;b&gt;",
                  "http://evil.example", "$x$", "| a | b |", "1. a", "- a", "~~x~~", "__b__ _c_",
                  "==x==", "10) a", "+ a", "&#60;img&#62;", "\\<b>"):  # fmt: skip
        shown = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(markdown("It is {}.", words)).strip()
        for tag in ("<img", "<a", "<b", "<em", "<strong", "<code", "<h1", "<li", "<s", "<table", "<br"):
            assert tag not in shown, (words, shown)
        assert Markup(shown).striptags() == " ".join(f"It is {words}.".split()), shown
        shown = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(markdown("{}", words)).strip()
        assert not any(tag in shown for tag in ("<img", "<a", "<em", "<strong", "<code", "<h1", "<li", "<s", "<table")), shown
    assert markdown("{:.2f} and {}", 0.5, Markup("<b>x</b>")) == "0.50 and <b>x</b>"
    assert plain("0.24") == "0.24"
    assert plain("launch_gpu.py (H100:2): 3 of m_se, +0.5 - 1!") == "launch_gpu.py (H100:2): 3 of m_se, +0.5 - 1!"
