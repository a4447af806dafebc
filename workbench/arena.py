"""The A/B app: ask by voice or text, see the text answer and the speech answer side by side, vote.

    python -m workbench.arena [--lab DIR] [--port 7860] [--host 127.0.0.1 --password ...]

Two tabs to ask in (Compare shows everything, Blind hides who answers until the vote), one with what the votes say.
Scripts ask and vote through gradio_client; see docs/arena.md. Votes are events in the lab's store.
"""

import argparse
import atexit
import datetime
import functools
import html
import inspect
import json
import os
import random
import re
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

import gradio as gr
import numpy as np

import store
from store import atomic
from workbench import answers, arena_stats

SIDES = ("left", "right")
CHOICES = {"left": "Left is better", "right": "Right is better", "tie": "Tie", "both_bad": "Both are bad"}
LARGEST = "20mb"
HERE = Path(__file__).parent


# --- comparisons ---


@dataclass
class Comparison:
    """One question and its answers. `heard`: its audio was played to the end; `choice`: the vote, once it is cast."""

    id: str
    question: answers.Question
    answers: dict[str, answers.Answer]
    blind: bool
    seed: int
    heard: bool = False
    choice: str | None = None
    at: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    def facts(self, veiled: bool = False) -> dict:
        """JSON-able; `veiled` leaves out whatever tells the sides apart other than what they say."""
        q = self.question
        told = {
            "comparison": self.id, "at": self.at, "question_id": q.question_id, "text": q.text, "source": q.source,
            "voice": q.voice, "duration_s": round(q.duration_s, 3), "notes": q.notes, "blind": self.blind,
            "seed": self.seed, "choice": self.choice,
        }  # fmt: skip
        if veiled:
            return told | {side: {"text": answer.text.strip()} for side, answer in self.answers.items()}
        told |= {"heard": q.heard, "cer": q.cer, "answer": q.item.choices[q.item.answer] if q.item else None}
        return told | {side: answer.facts() for side, answer in self.answers.items()}


class Study:
    """What the app's sessions share: the lab, its models, the listener, and the comparisons that can be voted on."""

    KEPT = 500  # comparisons in memory; older ones can no longer be voted on

    def __init__(self, lab, device: str = "cpu", tts: str | None = None, recogniser: str | None = None,
                 shots: int | None = None, keep: int = 4):  # fmt: skip
        self.lab, self.shots = Path(lab), shots
        self.models = answers.Models(lab, device, keep)
        self.listener = answers.Listener(lab, device, tts, recogniser)
        self.comparisons: OrderedDict[str, Comparison] = OrderedDict()
        self._lock = threading.Lock()
        self.sides()  # refuses a lab without a model before anything is shown

    def sides(self) -> list[tuple[str, str]]:
        """(label, key) of every contender in every modality, for the menus; key is `contender@run:step/modality`."""
        found = answers.contenders(self.lab)
        return [
            (f"{c.name} · {modality}" + ("" if c.teacher else f" · {c.run_id}, step {c.step}"), f"{c.key}/{modality}")
            for c in found
            for modality in c.modalities
        ]

    def default_sides(self) -> tuple[str, str]:
        """The teacher's text answer, and the newest checkpoint's speech answer (stage2_active's, if there is one)."""
        found = answers.contenders(self.lab)
        speech = next((c for c in found if c.name == "stage2_active"), found[1])
        return f"{found[0].key}/text", f"{speech.key}/speech"

    def _side(self, key: str) -> tuple[answers.Contender, str]:
        name, _, modality = (key or "").rpartition("/")
        if modality not in answers.MODALITIES:
            raise store.UserError(f"no side {key!r}: write contender/modality, such as teacher/text")
        return answers.pick(answers.contenders(self.lab), name), modality

    def compare(self, question: answers.Question, left: str, right: str, *, cascade: bool = False, blind: bool = False,
                seed: int = 0, temperature: float = 0.0) -> Comparison:  # fmt: skip
        """A comparison with answers that have not begun; `cascade` adds the teacher's to what the recogniser heard."""
        chosen = {"left": self._side(left), "right": self._side(right)}
        if cascade and question.heard is not None:
            chosen["cascade"] = self._side("teacher/cascade")
        made = {
            side: answers.Answer(
                self.models, contender, modality, question, self.listener.items, self.shots, temperature, seed
            )
            for side, (contender, modality) in chosen.items()
        }
        comparison = Comparison("a" + secrets.token_hex(6), question, made, blind, seed)
        with self._lock:
            self.comparisons[comparison.id] = comparison
            while len(self.comparisons) > self.KEPT:
                self.comparisons.popitem(last=False)
        return comparison

    def draw(self, pool: list[str], seed: int) -> tuple[str, str, object]:
        """Two sides of the pool in random order and an item to ask; the seed decides all three."""
        if len(set(pool)) < 2:
            raise store.UserError("a blind comparison needs at least two sides in the pool")
        if not self.listener.items:
            raise store.UserError("this lab has no tasks, so there is no item to ask; use Compare")
        rng = random.Random(seed)
        left, right = rng.sample(sorted(set(pool)), 2)
        return left, right, rng.choice(self.listener.items)

    def get(self, comparison_id: str) -> Comparison:
        found = self.comparisons.get(comparison_id or "")
        if found is None:
            raise store.UserError("there is no such comparison any more: ask again")
        return found

    def vote(self, comparison_id: str, choice: str, voter: str = "") -> Comparison:
        """Write the vote into the store. One vote a comparison; a blind one only after its audio was heard."""
        comparison = self.get(comparison_id)
        if choice not in CHOICES:
            raise store.UserError(f"no choice {choice!r}; there are {', '.join(CHOICES)}")
        if not all(comparison.answers[side].done for side in SIDES):
            raise store.UserError("the answers are not complete yet: vote when both are there")
        if any(comparison.answers[side].why == answers.STOPPED for side in SIDES):
            raise store.UserError("an answer was stopped half-way: ask again before you vote")
        if comparison.blind and not comparison.heard:
            raise store.UserError("listen to the question to its end first, then vote")
        with self._lock:
            if comparison.choice is not None:
                raise store.UserError(f"this comparison has its vote already: {CHOICES[comparison.choice].lower()}")
            sides, spent = {}, {}
            for side in SIDES:
                answer = comparison.answers[side]
                facts = answer.facts()
                for name in ("contender", "run_id", "step", "modality"):
                    sides[f"{side}_{name}"] = facts[name]
                spent[side] = {
                    "first_s": facts["first_s"], "total_s": facts["total_s"], "tokens": facts["n_tokens"],
                    "gives_away": facts["gives_away"],
                }  # fmt: skip
            store.append(
                self.lab, "votes", question_id=comparison.question.question_id, **sides, choice=choice,
                blind=comparison.blind, voter=(voter or "").strip()[:80] or None, latencies=json.dumps(spent),
                seed=comparison.seed,
            )  # fmt: skip
            store.renew_soon(self.lab)
            comparison.choice = choice
        return comparison

    # what is kept because someone says so

    def save(self, comparison_id: str) -> str:
        """Keep a comparison (its texts and numbers, never its audio) in lab/arena; returns its id, for the link."""
        comparison = self.get(comparison_id)
        if comparison.blind and comparison.choice is None:
            raise store.UserError("vote first: saving would unveil who answered")
        folder = self.lab / "arena"
        folder.mkdir(exist_ok=True)
        atomic.write_json(folder / f"{comparison.id}.json", comparison.facts())
        return comparison.id

    def saved(self, comparison_id: str) -> dict:
        """A saved comparison's facts."""
        path = self.lab / "arena" / f"{comparison_id}.json"
        if not re.fullmatch(r"a[0-9a-f]{12}", comparison_id or "") or not path.is_file():
            raise store.UserError("there is no saved comparison under this link")
        return json.loads(path.read_text())

    def history(self) -> list[dict]:
        """The saved comparisons, newest first."""
        found = [json.loads(path.read_text()) for path in (self.lab / "arena").glob("a*.json")]
        return sorted(found, key=lambda facts: facts["at"], reverse=True)


# --- what a page shows ---


def _told(number: float | None, digits: int = 2) -> str:
    return "–" if number is None else f"{number:.{digits}f}"


def _alternatives(title: str, top: list) -> str:
    shown = lambda text: html.escape(repr(text)[1:-1]) if text.strip() else "␣" * max(1, len(text))  # noqa: E731
    rows = "".join(f"<tr><td>{shown(text)}</td><td>{p:.0%}</td></tr>" for text, p in top)
    return f"<table><caption>{title}</caption>{rows}</table>"


def token_html(token: dict, first: bool = False) -> str:
    """A token, tinted by its divergence, with both models' alternatives for hovering and for the keyboard; the
    answer's first without the space before it."""
    d = token["d"]
    tint = 0 if d is None else min(85, round(100 * (1 - 2 ** (-d))))
    tip = f"<b>divergence {_told(d, 3)} nats</b>" + _alternatives("this model", token["ours"])
    tip += _alternatives("text teacher", token["teachers"])
    said = html.escape(token["text"].lstrip() if first else token["text"]) or "&thinsp;"
    return f'<span class="tok" tabindex="0" style="--tint:{tint}%">{said}<span class="tip">{tip}</span></span>'


def card(facts: dict | None, title: str, veiled: bool = False, running: bool = False) -> str:
    """One answer as HTML; `veiled`: the words alone."""
    if facts is None:
        return f'<div class="answer empty"><div class="who">{html.escape(title)}</div></div>'
    if veiled:
        said = html.escape(facts["text"]) or "<i>no words</i>"
        return f'<div class="answer"><div class="who">{html.escape(title)}</div><div class="said">{said}</div></div>'
    who = f"<b>{html.escape(facts['contender'])}</b> · {facts['modality']}"
    run = "" if facts["run_id"] is None else f"{facts['run_id']}, step {facts['step']}"
    said = "".join(token_html(token, i == 0) for i, token in enumerate(facts["tokens"])) or (
        "" if running else "<i>no words</i>"
    )
    end = "" if not running else '<span class="cursor">▍</span>'
    worst = max((t["d"] for t in facts["tokens"] if t["d"] is not None), default=None)
    told = [f"first token {facts['first_s']:.2f} s", f"in all {facts['total_s']:.2f} s", f"{facts['n_tokens']} tokens"]
    told.append(f"divergence {_told(facts['d'])} mean, {_told(worst)} at most")
    if facts["ended"]:
        told.append(f"ended by: {html.escape(facts['ended'])}")
    flag = '<span class="flag">tells how it was asked</span>' if facts["gives_away"] else ""
    return (
        f'<div class="answer"><div class="who">{html.escape(title)}: {who} <small>{run}</small>{flag}</div>'
        f'<div class="said">{said}{end}</div><div class="facts">{" · ".join(told)}</div></div>'
    )


def question_html(facts: dict) -> str:
    """What was asked, what the recogniser heard, and what was done to the sound."""
    rows = []
    if facts["text"]:
        rows.append(("asked", html.escape(facts["text"])))
    if facts.get("heard") is not None:
        cer = f" <small>character error rate {facts['cer']:.0%}</small>" if facts.get("cer") is not None else ""
        only = "" if facts["text"] else " <small>this is what the text side reads, as nothing else was given</small>"
        rows.append(("the recogniser heard", (html.escape(facts["heard"]) or "<i>nothing</i>") + cer + only))
    if facts.get("answer"):
        rows.append(("right answer", html.escape(facts["answer"])))
    rows.append(("sound", html.escape("; ".join([f"{facts['voice']}, {facts['duration_s']:.1f} s", *facts["notes"]]))))
    return '<dl class="question">' + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows) + "</dl>"


def cards(facts: dict, running: frozenset = frozenset()) -> list[str]:
    """HTML of left, right and cascade."""
    titles = {"left": "Left", "right": "Right", "cascade": "Cascade"}
    return [card(facts.get(side), title, running=side in running) for side, title in titles.items()]


def about(study: Study) -> str:
    """One paragraph on what this lab's models can be asked; plain about their ears."""
    listener = study.listener
    told = [f"Lab `{study.lab.name}`."]
    try:
        config = json.loads((study.lab / "study.json").read_text())["config"]
    except (OSError, ValueError, KeyError):
        config = {}
    if "natural_voices" in config:
        told.append(
            "**These models learnt from synthetic voices only** (espeak): they have never heard a person, and know "
            "nothing but the miniature's small world. What the recogniser heard is shown with every question."
        )
    domains = list(dict.fromkeys(item.domain for item in listener.items))
    if domains:
        example = listener.items[0].context
        told.append(f"They can be asked about {', '.join(domains)}: “{example}”")
    return " ".join(told)


def results_html(study: Study, blind_only: bool, margin: float, minimum: float) -> str:
    """The statistics of the lab's votes."""
    with store.connect(study.lab) as con:
        rows = arena_stats.games(arena_stats.votes(con, blind_only))
    if rows.empty:
        return '<p class="none">No votes yet. Vote in the Blind tab; untick “blind votes only” to count the others.</p>'
    how = {"margin": float(margin), "minimum": int(minimum)}
    overall = arena_stats.speech_against_text(rows, **how)
    table = [p for p in [overall, *arena_stats.pairs(rows, **how)] if p.n]
    body = "".join(_preference_row(p) for p in table)
    told = (
        '<table class="votes"><tr><th>a</th><th>against b</th><th>votes</th><th>preference for a, 95 % interval</th>'
        "<th></th><th>verdict</th><th>left side</th><th>longer answer</th><th>tokens a / b</th></tr>"
        + body
        + "</table>"
        "<p><small>A tie or “both bad” is half a point each. Intervals: bootstrap clustered by question and by voter. "
        f"Parity: equivalence test, two one-sided tests against 0.5 ± {margin:g}. Left side, longer answer: share of "
        "the decided votes; far from 50 %, they say that something else than the answer was judged.</small></p>"
    )
    ranked = arena_stats.bradley_terry(rows)
    if ranked is not None:
        lines = "".join(
            f"<tr><td>{html.escape(r.competitor)}</td><td>{r.strength:+.2f}</td>"
            f"<td>{r.low:+.2f} to {r.high:+.2f}</td><td>{r.n}</td></tr>"
            for r in ranked.itertuples()
        )
        told += (
            '<h3>Bradley–Terry strengths</h3><table class="votes"><tr><th>competitor</th><th>log-strength</th>'
            f"<th>95 % interval</th><th>votes</th></tr>{lines}</table>"
        )
    return told


def _preference_row(p: arena_stats.Preference) -> str:
    share = lambda x: "–" if x != x else f"{x:.0%}"  # noqa: E731
    bar = (
        f'<div class="bar"><i style="left:{50 - 100 * p.margin:.1f}%;width:{200 * p.margin:.1f}%"></i>'
        f'<u style="left:{100 * p.low:.1f}%;width:{100 * (p.high - p.low):.1f}%"></u>'
        f'<b style="left:{100 * p.mean:.1f}%"></b></div>'
    )
    lengths = " / ".join("–" if x != x else f"{x:.1f}" for x in (p.tokens_a, p.tokens_b))
    return (
        f"<tr><td>{html.escape(p.a)}</td><td>{html.escape(p.b)}</td><td>{p.n} <small>on {p.questions} questions by "
        f"{p.voters} voters; {p.ties} ties, {p.both_bad} both bad</small></td><td>{p.mean:.2f} [{p.low:.2f}, "
        f"{p.high:.2f}]</td><td>{bar}</td><td>{html.escape(p.verdict)}</td><td>{share(p.left)} <small>p "
        f"{_told(None if p.p_left != p.p_left else p.p_left)}</small></td><td>{share(p.longer)}</td>"
        f"<td>{lengths}</td></tr>"
    )


# --- safety ---


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


class Arena(gr.Blocks):
    """Blocks that are safe to show: what they refuse and how they start does not depend on the caller."""

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        refuse_foreign_files(inputs)
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)

    def launch(self, **how):
        from starlette.middleware import Middleware

        theme = gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
        )
        given = {
            "server_name": "127.0.0.1", "share": False, "max_file_size": LARGEST, "show_error": True, "quiet": True,
            "allowed_paths": [], "blocked_paths": [str(self.lab)], "footer_links": ["api"], "theme": theme,
            "css": (HERE / "arena.css").read_text(), "head": f"<script>{(HERE / 'arena.js').read_text()}</script>",
            "app_kwargs": {"middleware": [Middleware(LocalOnly)]},
        } | how  # fmt: skip
        return super().launch(**given)


def _plainly(function):
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


def _sound(question: answers.Question) -> tuple[int, np.ndarray]:
    """For gr.Audio: 16 bit, because it would change the loudness of floats."""
    return answers.SAMPLE_RATE, (np.clip(question.samples, -1, 1) * 32767).astype(np.int16)


# --- the app ---


def build(lab=None, device: str = "cpu", tts: str | None = None, recogniser: str | None = None,
          shots: int | None = None, keep: int = 4) -> gr.Blocks:  # fmt: skip
    """The A/B app on a lab, not yet launched: `build(lab).launch()` serves it on 127.0.0.1.

    device: where the models run, one at a time. tts, recogniser: other ones than the lab's. shots: answered items
    before each question, where the checkpoint's own number is not wanted. keep: models in memory. StoreError or
    SaladError where the lab has nothing that could answer."""
    lab = store.lab_path(lab)
    if "GRADIO_TEMP_DIR" not in os.environ:  # the one folder that is served: uploads and sounds, gone with the app
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="salad-arena-")
        atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
    study = Study(lab, device, tts, recogniser, shots, keep)
    with Arena(title="SALAD A/B", analytics_enabled=False, delete_cache=(300, 3600)) as app:
        app.lab, app.study = lab, study
        remembered = gr.BrowserState("", storage_key="salad-arena-voter", secret="salad-arena")
        gr.Markdown("# Text answer and speech answer, side by side\n" + about(study))
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                show_saved = _compare_tab(study)
            with gr.Tab("Blind", id="blind"):
                pool = _blind_tab(study)
            with gr.Tab("Statistics", id="statistics") as statistics:
                _statistics_tab(study, statistics)
        with gr.Row():
            voter = gr.Textbox(
                label="Your name, under which votes are counted", max_length=80, elem_id="voter", scale=0, min_width=320
            )
        app.voter = voter
        _wire_votes(app, study, show_saved, pool, voter)

        def welcome(kept: str, request: gr.Request):
            return getattr(request, "username", None) or kept or f"guest-{secrets.token_hex(3)}"

        app.load(welcome, remembered, voter, show_progress="hidden", api_visibility="private")
        voter.change(lambda name: name, voter, remembered, show_progress="hidden", api_visibility="private")
        _api(study)
    app.queue(max_size=64, default_concurrency_limit=8)
    return app


DEVICE = {"concurrency_id": "device", "concurrency_limit": 1}  # one question at a time; the queue shows its position


def _menu(study: Study, side: str, value: str) -> gr.Dropdown:
    return gr.Dropdown(study.sides(), value=value, label=f"{side.capitalize()} side", filterable=True)


def _vote_buttons(prefix: str, interactive: bool) -> dict[str, gr.Button]:
    return {
        choice: gr.Button(f"{label}  [{key}]", elem_id=f"{prefix}-{choice}", interactive=interactive)
        for key, (choice, label) in enumerate(CHOICES.items(), 1)
    }


def _compare_tab(study: Study) -> dict:
    """Ask and see everything. Returns the components that others need."""
    ways = ["Type", "Record or upload", "Item of the study"]
    items = study.listener.items[:500]
    left, right = study.default_sides()
    with gr.Row(equal_height=False):
        with gr.Column(scale=3):
            way = gr.Radio(ways, value=ways[0], label="Ask by", elem_id="way")
            text = gr.Textbox(
                label="Question, spoken by the study's voice", placeholder=items[0].context if items else "",
                max_length=answers.LONGEST_TEXT, elem_id="question",
            )  # fmt: skip
            sound = gr.Audio(
                sources=["microphone", "upload"], type="filepath", label=f"At most {answers.LONGEST_S:.0f} s",
                visible=False, editable=False, buttons=[], elem_id="recording",
            )  # fmt: skip
            item = gr.Dropdown(
                [(f"{i.domain}: {i.context}", i.item_id) for i in items], label="Item", visible=False,
                value=items[0].item_id if items else None, elem_id="item",
            )  # fmt: skip
            voice = gr.Dropdown(
                list(dict.fromkeys([*study.listener.voices, *study.listener.tts.voices])), label="Voice",
                value=(study.listener.voices or list(study.listener.tts.voices))[0],
                info=f"{study.listener.tts_name}; the study's own first", allow_custom_value=True,
            )  # fmt: skip
        with gr.Column(scale=3):
            menus = [_menu(study, side, value) for side, value in (("left", left), ("right", right))]
            cascade = gr.Checkbox(
                value=True, label="Also the cascade: the recogniser's transcript, read by the teacher"
            )
            with gr.Accordion("Sampling", open=False), gr.Row():
                temperature = gr.Slider(0, 1.5, value=0, step=0.1, label="Temperature (0: greedy)")
                seed = gr.Number(value=0, precision=0, label="Seed")
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
    current = gr.State("")
    with gr.Row(equal_height=False):
        told = gr.HTML(elem_id="told")
        heard = gr.Audio(
            label="What was asked", interactive=False, buttons=["download"], visible=False, elem_id="asked"
        )
    with gr.Row(equal_height=True):
        outs = [gr.HTML(card(None, title), elem_id=f"answer-{title.lower()}") for title in ("Left", "Right", "Cascade")]
    gr.HTML(
        '<p class="legend">Tint: divergence of the next-token prediction from the text teacher’s, '
        '<span class="tok" style="--tint:0%">0</span> <span class="tok" style="--tint:29%">0.5</span> '
        '<span class="tok" style="--tint:50%">1</span> <span class="tok" style="--tint:85%">3 nats or more</span>; '
        "point at a token, or reach it with Tab, for the alternatives.</p>"
    )
    with gr.Row():
        buttons = _vote_buttons("compare", False)
    message = gr.Markdown(elem_id="compare-message")
    with gr.Row():
        save = gr.Button("Save, with a link", size="sm", interactive=False, elem_id="save", scale=0, min_width=180)
        consent = gr.Checkbox(
            label="I agree that my recording stays in this lab as a test item", visible=False, elem_id="consent"
        )
        keep = gr.Button("Keep the recording", size="sm", visible=False, elem_id="keep", scale=0, min_width=180)
    with gr.Accordion("Saved comparisons", open=False):
        history = gr.Dataframe(
            headers=["asked", "left", "right", "when", "id"], interactive=False, wrap=True, elem_id="history"
        )

    def toggle(chosen):
        typed, recorded = chosen == ways[0], chosen == ways[1]
        label = "What is said, in words (if you like: for the error rate and the text side)"
        return (
            gr.update(visible=typed or recorded, label=label if recorded else "Question, spoken by the study's voice"),
            gr.update(visible=recorded),
            gr.update(visible=chosen == ways[2]),
            gr.update(visible=typed),
        )

    way.change(toggle, way, [text, sound, item, voice], show_progress="hidden", api_visibility="private")

    @_plainly
    def asked(way, text, sound, item, voice, left, right, cascade, temperature, seed):
        recorded = way == ways[1]
        if recorded and sound is None:
            raise store.UserError("record a question or upload one first")
        question = study.listener.ask(
            text=text if way != ways[2] else None, audio=sound if recorded else None,
            item_id=item if way == ways[2] else None, voice=voice, seed=int(seed or 0),
        )  # fmt: skip
        comparison = study.compare(
            question, left, right, cascade=cascade, seed=int(seed or 0), temperature=float(temperature)
        )
        off = [gr.update(interactive=False)] * len(CHOICES)
        first = [comparison.id, question_html(comparison.facts()), gr.update(value=_sound(question), visible=True)]
        keepable = [gr.update(visible=recorded, value=False), gr.update(visible=recorded)]
        yield [*first, *cards(comparison.facts(), frozenset(comparison.answers)), *off, "", off[0], *keepable]
        skipped, shown = [gr.skip()] * len(first), time.monotonic()
        running = set(comparison.answers)
        while running:
            running = {side for side in running if comparison.answers[side].step()}
            if time.monotonic() - shown > 0.06 or not running:
                shown = time.monotonic()
                rest = [gr.skip()] * (len(off) + 4)
                yield [*skipped, *cards(comparison.facts(), frozenset(running)), *rest]
        on = [gr.update(interactive=True)] * len(CHOICES)
        yield [*skipped, *cards(comparison.facts()), *on, "Which answer is better? You may vote.", on[0], *keepable]

    outputs = [current, told, heard, *outs, *buttons.values(), message, save, consent, keep]
    inputs = [way, text, sound, item, voice, *menus, cascade, temperature, seed]
    how = {"show_progress": "minimal", "show_progress_on": [told], "api_visibility": "private", **DEVICE}
    running = ask.click(asked, inputs, outputs, **how)
    entered = text.submit(asked, inputs, outputs, **how)

    @_plainly
    def stopped(comparison_id):
        comparison = study.comparisons.get(comparison_id)
        if comparison is None:
            return [gr.skip()] * 3 + ["Stopped."]
        for answer in comparison.answers.values():
            answer.stop()
        return [*cards(comparison.facts()), "Stopped: what was said so far stays; ask again for whole answers."]

    stop.click(
        stopped, current, [*outs, message], cancels=[running, entered], queue=False, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip

    @_plainly
    def saved(comparison_id, request: gr.Request):
        name = study.save(comparison_id)
        link = f"{request.headers.get('origin') or ''}/?ask={name}"
        return f"Saved. Its link: [{link}]({link})", _history(study)

    save.click(saved, current, [message, history], show_progress="hidden", api_visibility="private")

    @_plainly
    def kept(comparison_id, agreed):
        if not agreed:
            raise store.UserError("tick that you agree first: without it, nothing of a recording is kept")
        name = answers.keep_recording(study.lab, study.get(comparison_id).question)
        return f"Kept as `{name}`, voice `recorded`, in lab/speech/recorded.", gr.update(visible=False)

    keep.click(kept, [current, consent], [message, keep], show_progress="hidden", api_visibility="private")

    @_plainly
    def reopened(facts):
        return [question_html(facts), gr.update(visible=False), *cards(facts)]

    def linked(request: gr.Request):
        name, menu = request.query_params.get("ask"), [gr.update(choices=study.sides())] * 2
        if not name:
            return [gr.skip()] * 5 + ["", _history(study), *menu]
        try:
            facts = study.saved(name)
        except store.UserError as error:
            return [gr.skip()] * 5 + [str(error), _history(study), *menu]
        when = f"Saved on {facts['at'][:16].replace('T', ' ')} UTC"
        chosen = f"; the vote was: {CHOICES[facts['choice']].lower()}" if facts["choice"] else ""
        return [*reopened(facts), when + chosen + ".", _history(study), *menu]

    gr.on(
        None, linked, None, [told, heard, *outs, message, history, *menus], show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip

    @_plainly
    def opened(event: gr.SelectData):
        return reopened(study.saved(event.row_value[-1]))

    history.select(opened, None, [told, heard, *outs], show_progress="hidden", api_visibility="private")
    return {"current": current, "buttons": buttons, "message": message, "outs": outs}


def _history(study: Study) -> list[list[str]]:
    return [
        [facts["text"] or facts.get("heard") or "", facts["left"]["text"], facts["right"]["text"],
         facts["at"][:16].replace("T", " "), facts["comparison"]]
        for facts in study.history()
    ]  # fmt: skip


def _blind_tab(study: Study) -> dict:
    """Two answers without names; the vote unveils them."""
    gr.Markdown(
        "Listen to the question, read both answers, vote. Who gave which answer, and how it was asked, is shown after "
        "the vote. Keys: 1 left, 2 right, 3 tie, 4 both bad."
    )
    with gr.Accordion("Who takes part", open=False):
        pool = gr.CheckboxGroup(study.sides(), value=list(study.default_sides()), show_label=False, elem_id="pool")
    with gr.Row():
        start = gr.Button("Next question", variant="primary", elem_id="blind-next", scale=0, min_width=200)
    current = gr.State("")
    with gr.Row(equal_height=False):
        sound = gr.Audio(label="The question", interactive=False, buttons=[], visible=False, elem_id="blind-sound")
        told = gr.HTML(elem_id="blind-told")
    with gr.Row(equal_height=True):
        outs = [gr.HTML(card(None, title), elem_id=f"blind-{title.lower()}-answer") for title in ("Left", "Right")]
    with gr.Row():
        buttons = _vote_buttons("blind", False)
    message = gr.Markdown(elem_id="blind-message")
    outputs = [current, sound, told, *outs, *buttons.values(), message]

    @_plainly
    def drawn(pool):
        comparison = blind_comparison(study, pool, secrets.randbelow(2**31))
        facts = comparison.facts(veiled=True)
        shown = [card(facts[side], side.capitalize(), veiled=True) for side in SIDES]
        off = [gr.update(interactive=False)] * len(CHOICES)
        asked = f'<dl class="question"><dt>asked</dt><dd>{html.escape(facts["text"])}</dd></dl>'
        sounded = gr.update(value=_sound(comparison.question), visible=True)
        return [comparison.id, sounded, asked, *shown, *off, "Listen to the question to its end, then vote."]

    start.click(
        drawn, pool, outputs, show_progress="minimal", show_progress_on=[told], api_visibility="private", **DEVICE
    )

    def listened(comparison_id):
        comparison = study.comparisons.get(comparison_id)
        if comparison is None or comparison.choice is not None:
            return [gr.skip()] * (len(CHOICES) + 1)
        comparison.heard = True
        return [*[gr.update(interactive=True)] * len(CHOICES), "Which answer is better?"]

    sound.stop(listened, current, [*buttons.values(), message], show_progress="hidden", api_visibility="private")
    return {"current": current, "buttons": buttons, "message": message, "outs": outs, "told": told}


def blind_comparison(study: Study, pool: list[str], seed: int) -> Comparison:
    """A blind comparison with whole answers: item, pair and sides drawn by the seed, greedy."""
    left, right, item = study.draw(pool, seed)
    question = study.listener.ask(item_id=item.item_id, seed=0)
    comparison = study.compare(question, left, right, blind=True, seed=seed)
    for answer in comparison.answers.values():
        answer.run()
    return comparison


def _wire_votes(app, study: Study, compare: dict, blind: dict, voter) -> None:
    """The vote buttons of both tabs."""

    def handler(choice):
        @_plainly
        def voted(comparison_id, voter, request: gr.Request):
            comparison = study.vote(comparison_id, choice, getattr(request, "username", None) or voter)
            facts = comparison.facts()
            off = [gr.update(interactive=False)] * len(CHOICES)
            said = f"Voted: **{CHOICES[choice].lower()}**."
            if not comparison.blind:
                return [*off, said]
            return [*off, said + " Next question?", question_html(facts), *cards(facts)[:2]]

        return voted

    for tab in (compare, blind):
        outputs = [*tab["buttons"].values(), tab["message"]]
        if tab is blind:
            outputs += [tab["told"], *tab["outs"]]
        for choice, button in tab["buttons"].items():
            button.click(
                handler(choice), [tab["current"], voter], outputs, show_progress="hidden", api_visibility="private"
            )


def _statistics_tab(study: Study, tab) -> None:
    with gr.Row():
        blind_only = gr.Checkbox(value=True, label="Blind votes only")
        margin = gr.Slider(0.02, 0.25, value=arena_stats.MARGIN, step=0.01, label="Parity is 0.5 ± this")
        minimum = gr.Slider(5, 300, value=arena_stats.MINIMUM, step=5, label="Votes before a verdict is shown")
    told = gr.HTML(elem_id="results")
    with gr.Row():
        again = gr.Button("Count again", size="sm", scale=0, min_width=160)
        export = gr.Button("Export the votes as CSV", size="sm", elem_id="export", scale=0, min_width=220)
    file = gr.File(label="Votes", visible=False, elem_id="exported")
    show = _plainly(lambda *given: results_html(study, *given))
    inputs = [blind_only, margin, minimum]
    how = {"show_progress": "minimal", "api_visibility": "private"}
    gr.on([tab.select, again.click, blind_only.change, margin.release, minimum.release], show, inputs, told, **how)

    @_plainly
    def exported(blind_only):
        with store.connect(study.lab) as con:
            table = arena_stats.votes(con, blind_only)
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
        table.to_csv(folder / "votes.csv", index=False)
        return gr.update(value=str(folder / "votes.csv"), visible=True)

    export.click(exported, blind_only, file, **how)


def _api(study: Study) -> None:
    """The endpoints for gradio_client: contenders, ask, heard, vote, results."""

    @_plainly
    def contenders() -> list[str]:
        """Who can answer: contender@run:step/modality. `ask` also takes the short form, such as stage1/speech."""
        return [key for _, key in study.sides()]

    @_plainly
    def ask(question: str = "", audio: dict | None = None, item: str = "", left: str = "", right: str = "",
            voice: str = "", cascade: bool = False, blind: bool = False, temperature: float = 0.0,
            seed: int = 0) -> dict:  # fmt: skip
        """Ask by text, by an uploaded recording (gradio_client.handle_file) or by an item's id; whole answers.

        `comparison` in the reply is what `vote` wants. A blind one hides who answered; without a question, item and
        sides are drawn by the seed."""
        default = study.default_sides()
        path = (audio or {}).get("path")
        if blind and not (question or path or item):
            comparison = blind_comparison(study, [left or default[0], right or default[1]], int(seed))
            return comparison.facts(veiled=True)
        asked = study.listener.ask(question, path, item or None, voice or None, seed=int(seed))
        sides = [left or default[0], right or default[1]]
        if blind:
            random.Random(int(seed)).shuffle(sides)
        comparison = study.compare(
            asked, *sides, cascade=cascade and not blind, blind=blind, seed=int(seed), temperature=float(temperature)
        )
        for answer in comparison.answers.values():
            answer.run()
        return comparison.facts(veiled=blind)

    @_plainly
    def heard(comparison: str) -> bool:
        """Say that a blind comparison's question was listened to; only then can it be voted on."""
        study.get(comparison).heard = True
        return True

    @_plainly
    def vote(comparison: str, choice: str, voter: str = "", request: gr.Request = None) -> dict:
        """left, right, tie or both_bad; the reply tells who answered."""
        return study.vote(comparison, choice, getattr(request, "username", None) or voter).facts()

    @_plainly
    def results(blind_only: bool = True) -> list[str]:
        """The statistics tab as text."""
        with store.connect(study.lab) as con:
            return arena_stats.lines(arena_stats.votes(con, blind_only))

    gr.api(contenders, api_name="contenders")
    gr.api(ask, api_name="ask", **DEVICE)
    gr.api(heard, api_name="heard")
    gr.api(vote, api_name="vote")
    gr.api(results, api_name="results")


# --- the command line ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workbench.arena",
        description="Open the A/B app on a lab: ask by voice or text, see the text answer and the speech answer side "
        "by side with their divergence, vote, blind if you like. The votes are in the lab's store.",
    )
    parser.add_argument("--lab", metavar="DIR", help="the lab (default: $SALAD_LAB, else lab/)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine "
                        "alone; any other needs a password)")  # fmt: skip
    parser.add_argument("--password", help="asked of every visitor, whose user name becomes the voter's "
                        "(default: $SALAD_ARENA_PASSWORD)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="where the models run: cpu, cuda, cuda:1 ... (default: a GPU "
                        "if there is one)")  # fmt: skip
    parser.add_argument("--tts", help="speak typed questions with this: espeak, kokoro, kokoro:<folder> or "
                        "package.module:name (default: what spoke the lab's syntheses)")  # fmt: skip
    parser.add_argument("--recogniser", help="folder or name of a CTC or Whisper-type model (default: the lab's)")
    parser.add_argument("--shots", type=int, help="answered items put before each question (default: the "
                        "checkpoint's own prompt)")  # fmt: skip
    parser.add_argument("--keep", type=int, default=4, help="models that stay in memory (default: %(default)s)")
    return parser


def main(args: list[str] | None = None) -> int:
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
        app = build(given.lab, given.device, given.tts, given.recogniser, given.shots, given.keep)
        auth = (lambda user, word: bool(user.strip()) and secrets.compare_digest(word.encode(), password.encode())) if (
            password
        ) else None  # fmt: skip
        _, address, _ = app.launch(
            server_name=given.host, server_port=given.port, auth=auth, prevent_thread_lock=True,
            auth_message="Your name, and the password you were given." if auth else None,
        )  # fmt: skip
        print(f"the A/B app on {app.lab}: {address}   (Ctrl-C ends it)", flush=True)
        app.block_thread()
    except (store.UserError, OSError) as error:
        print(f"arena: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
