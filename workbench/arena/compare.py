"""The tab Compare: ask, and see everything."""

import time
from urllib.parse import urlsplit

import gradio as gr

import store
from workbench.arena import questions
from workbench.arena.pages import LEGEND, card, cards, question_html
from workbench.arena.parts import DEVICE, playable, vote_buttons
from workbench.arena.safety import plainly
from workbench.arena.service import CHOICES, ArenaService

WAYS = TYPE, RECORD, ITEM = "Type", "Record or upload", "Item of the study"
TYPED = "Question, spoken by the study's voice"
SPOKEN = "Transcript (optional: for the error rate and the text side)"
PRIVATE = {"show_progress": "hidden", "api_visibility": "private"}


class CompareTab:
    """The components of the tab, laid out when it is made, and what happens at each of them.

    `current` (the comparison's id), `buttons` (the votes), `message` and `outs` (the answers) are for who counts votes."""

    def __init__(self, service: ArenaService):
        self.service = service
        with gr.Row(equal_height=False):
            with gr.Column(scale=3):
                self._lay_out_question()
            with gr.Column(scale=3):
                self._lay_out_sides()
        self.current = gr.State("")
        with gr.Row(equal_height=False):
            self.question = gr.HTML(elem_id="told")
            self.sound = gr.Audio(label="What was asked", interactive=False, buttons=["download"], visible=False, elem_id="asked")
        with gr.Row(equal_height=True):
            titles = ("Left", "Right", "Cascade")
            self.outs = [gr.HTML(card(None, title), elem_id=f"answer-{title.lower()}") for title in titles]
        gr.HTML(LEGEND)
        with gr.Row():
            self.buttons = vote_buttons("compare", False)
        self.message = gr.Markdown(elem_id="compare-message")
        self._lay_out_keeping()
        self._wire_asking()
        self._wire_keeping()
        self._wire_reopening()

    # --- what is where ---

    def _lay_out_question(self) -> None:
        """How to ask, and the question."""
        listener = self.service.listener
        items = listener.items[:500]
        self.way = gr.Radio(WAYS, value=TYPE, label="Ask by", elem_id="way")
        self.text = gr.Textbox(
            label=TYPED,
            placeholder=items[0].context if items else "",
            max_length=questions.LONGEST_TEXT,
            elem_id="question",
        )
        self.recording = gr.Audio(
            sources=["microphone", "upload"], type="filepath", label=f"At most {questions.LONGEST_S:.0f} s",
            visible=False, editable=False, buttons=[], elem_id="recording",
        )  # fmt: skip
        self.item = gr.Dropdown(
            [(f"{i.domain}: {i.context}", i.item_id) for i in items],
            label="Item",
            visible=False,
            value=items[0].item_id if items else None,
            elem_id="item",
        )
        self.voice = gr.Dropdown(
            list(dict.fromkeys([*listener.voices, *listener.tts.voices])),
            label="Voice",
            value=(listener.voices or list(listener.tts.voices))[0],
            info=f"{listener.tts_name}; the study's own first",
            allow_custom_value=True,
        )

    def _lay_out_sides(self) -> None:
        """Who answers, and how."""
        defaults = zip(("Left", "Right"), self.service.default_sides(), strict=True)
        self.menus = [
            gr.Dropdown(self.service.sides(), value=value, label=f"{side} side", filterable=True) for side, value in defaults
        ]
        self.cascade = gr.Checkbox(value=True, label="Also the cascade: the recogniser's transcript, read by the teacher")
        with gr.Accordion("Sampling", open=False), gr.Row():
            self.temperature = gr.Slider(0, 1.5, value=0, step=0.1, label="Temperature (0: greedy)")
            self.seed = gr.Number(value=0, precision=0, label="Seed")
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask")
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop")

    def _lay_out_keeping(self) -> None:
        """What can be kept, and what was."""
        with gr.Row():
            self.save = gr.Button("Save, with a link", size="sm", interactive=False, elem_id="save", scale=0, min_width=180)
            self.consent = gr.Checkbox(
                label="I agree that my recording stays in this lab as a test item", visible=False, elem_id="consent"
            )
            self.keep = gr.Button("Keep the recording", size="sm", visible=False, elem_id="keep", scale=0, min_width=180)
        with gr.Accordion("Saved comparisons", open=False):
            self.history = gr.Dataframe(
                headers=["asked", "left", "right", "when", "id"], interactive=False, wrap=True, elem_id="history"
            )

    # --- what happens ---

    def _wire_asking(self) -> None:
        inputs = [self.way, self.text, self.recording, self.item, self.voice, *self.menus, self.cascade,
                  self.temperature, self.seed]  # fmt: skip
        outputs = [self.current, self.question, self.sound, *self.outs, *self.buttons.values(), self.message, self.save,
                   self.consent, self.keep]  # fmt: skip
        how = {"show_progress": "minimal", "show_progress_on": [self.question], "api_visibility": "private", **DEVICE}
        self.way.change(self._way_chosen, self.way, [self.text, self.recording, self.item, self.voice], **PRIVATE)
        asked = plainly(self._asked)
        running = [self.ask.click(asked, inputs, outputs, **how), self.text.submit(asked, inputs, outputs, **how)]
        self.stop.click(plainly(self._stopped), self.current, [*self.outs, self.message], cancels=running, queue=False, **PRIVATE)

    @staticmethod
    def _way_chosen(way: str) -> tuple[dict, ...]:
        typed, recorded = way == TYPE, way == RECORD
        return (
            gr.update(visible=typed or recorded, label=SPOKEN if recorded else TYPED),
            gr.update(visible=recorded),
            gr.update(visible=way == ITEM),
            gr.update(visible=typed),
        )

    def _asked(self, way, text, recording, item, voice, left, right, cascade, temperature, seed):
        """The question first, then the answers as they grow, then the vote."""
        recorded = way == RECORD
        if recorded and recording is None:
            raise store.UserError("record a question or upload one first")
        seed = 0 if seed is None else seed
        question = self.service.ask(
            None if way == ITEM else text, recording if recorded else None, item if way == ITEM else None, voice, seed
        )
        comparison = self.service.compare(question, left, right, cascade=bool(cascade), seed=seed, temperature=temperature)
        off = [gr.update(interactive=False)] * len(CHOICES)
        first = [comparison.id, question_html(comparison.facts()), gr.update(value=playable(question), visible=True)]
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

    def _stopped(self, comparison_id: str) -> list:
        if not comparison_id:
            return [gr.skip()] * 3 + ["Stopped."]
        comparison = self.service.get(comparison_id)
        for answer in comparison.answers.values():
            answer.stop()
        return [*cards(comparison.facts()), "Stopped: the answers so far remain; ask again for complete answers."]

    def _wire_keeping(self) -> None:
        self.save.click(plainly(self._saved), self.current, [self.message, self.history], **PRIVATE)
        self.keep.click(plainly(self._kept), [self.current, self.consent], [self.message, self.keep], **PRIVATE)

    def _saved(self, comparison_id: str, request: gr.Request) -> tuple[str, list]:
        name = self.service.save(comparison_id)
        link = f"{_address(request)}/?ask={name}"
        return f"Saved. Its link: [{link}]({link})", self._history()

    def _kept(self, comparison_id: str, agreed: bool) -> tuple[str, dict]:
        if not agreed:
            raise store.UserError("tick that you agree first: without it, nothing of a recording is kept")
        name = questions.keep_recording(self.service.lab, self.service.get(comparison_id).question)
        return f"Kept as `{name}`, voice `recorded`, in lab/speech/recorded.", gr.update(visible=False)

    def _wire_reopening(self) -> None:
        shown = [self.question, self.sound, *self.outs]
        gr.on(None, self._linked, None, [*shown, self.message, self.history, *self.menus], **PRIVATE)
        self.history.select(plainly(self._opened), None, shown, **PRIVATE)

    def _linked(self, request: gr.Request) -> list:
        """The page as it opens: with the comparison that its link names."""
        name, menu = request.query_params.get("ask"), [gr.update(choices=self.service.sides())] * 2
        if not name:
            return [gr.skip()] * 5 + ["", self._history(), *menu]
        try:
            facts = self.service.saved(name)
        except store.UserError as error:
            return [gr.skip()] * 5 + [str(error), self._history(), *menu]
        when = f"Saved on {facts['at'][:16].replace('T', ' ')} UTC"
        chosen = f"; the vote was: {CHOICES[facts['choice']].lower()}" if facts["choice"] else ""
        return [*_reopened(facts), when + chosen + ".", self._history(), *menu]

    def _opened(self, event: gr.SelectData) -> list:
        return _reopened(self.service.saved(event.row_value[-1]))

    def _history(self) -> list[list[str]]:
        """A row for each saved comparison, and one for each that cannot be read, with the reason."""
        saved, unread = self.service.history()
        return [
            [facts["text"] or facts["heard"] or "", facts["left"]["text"], facts["right"]["text"],
             facts["at"][:16].replace("T", " "), facts["comparison"]]
            for facts in saved
        ] + [[f"cannot be read: {why}", "", "", "", ""] for why in unread]  # fmt: skip


def _address(request: gr.Request) -> str:
    """Where the visitor's page stands, without a slash at the end: behind a proxy, under the path that it gives the app."""
    page = urlsplit(request.headers.get("referer") or request.headers.get("origin") or "")
    return f"{page.scheme}://{page.netloc}{page.path}".rstrip("/") if page.netloc else ""


def _reopened(facts: dict) -> list:
    return [question_html(facts), gr.update(visible=False), *cards(facts)]
