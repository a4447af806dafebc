"""Prompt formats: what a model is given, where its loss stands, and that everyone lays texts out the same way."""

import numpy as np
import pytest
import tiny
import torch

import store
from salad import SaladError, training
from salad.config import SequenceConfig
from salad.data import corpora
from salad.data.frame_source import FrameSource
from salad.data.interleaving import Span
from salad.evaluation.scoring import loglikelihoods
from salad.models import SpeechLM
from salad.models.prompts import PromptFormat, turn
from salad.passes.score import score
from salad.training import checkpoints
from workbench.arena.answers import prompt_of

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou answer.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # as Qwen2.5's: no BOS, a system prompt of its own
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)  # as Llama 3's: a BOS, no system prompt of its own
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
SPECIAL = {CHATML: ["<|im_start|>", "<|im_end|>"], HEADERS: ["<|h|>", "<|/h|>", "<|eot|>"]}


def tokenizer(template, bos=False):
    made = tiny.tokenizer(bos=bos)
    made.add_special_tokens({"additional_special_tokens": SPECIAL.get(template, [])})
    made.chat_template = template
    return made


KINDS = {
    "without a BOS": (lambda: tokenizer(CHATML), None),
    "with a BOS": (lambda: tokenizer(HEADERS, bos=True), None),
    "with a system prompt": (lambda: tokenizer(HEADERS, bos=True), "You listen well."),
    "with a system prompt in place of the template's": (lambda: tokenizer(CHATML), "You listen well."),
}


@pytest.fixture(params=KINDS)
def chat(request):
    made, system = KINDS[request.param]
    return PromptFormat(made(), "chat", system)


def conversation(prompt, user):
    return ([{"role": "system", "content": prompt.system}] if prompt.system else []) + [{"role": "user", "content": user}]


def rendered(prompt, user) -> list[int]:
    """The tokenizer's own word on a conversation, up to its answer."""
    return prompt.tokenizer.apply_chat_template(conversation(prompt, user), add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("bos", [True, False])
def test_plain_begins_with_bos_or_else_the_end_of_text_token_and_every_token_carries_loss(bos):
    prompt = PromptFormat(tiny.tokenizer(bos=bos))
    assert prompt.prefix == prompt.tokenizer.convert_tokens_to_ids("<s>" if bos else "<end>")
    laid = prompt.write(tiny.TEXTS[0]).sequence()
    ids = prompt.tokenizer(tiny.TEXTS[0], add_special_tokens=False)["input_ids"]
    assert laid.text_ids.tolist() == laid.ids.tolist() == [prompt.prefix, *ids]
    assert laid.text_rows.tolist() == list(range(len(ids)))


@pytest.mark.parametrize("text", tiny.TEXTS)
def test_a_chat_is_the_tokenizers_own_and_its_loss_stands_on_the_answer_only(chat, text):
    stop = turn(text)
    user, answer = text[:stop].strip(), text[stop:]
    assert user and answer
    laid = chat.write(text).sequence()
    before = rendered(chat, user)
    assert laid.text_ids.tolist()[: len(before)] == laid.ids.tolist()[: len(before)] == before
    targets = laid.text_ids[laid.text_rows + 1].tolist()
    assert laid.text_rows[0] == len(before) - 1 and chat.tokenizer.decode(targets) == answer
    assert targets == laid.ids[laid.rows + 1].tolist() and not laid.after_speech.any()


def test_an_answer_of_its_own_and_the_end_of_its_turn_carry_the_loss(chat):
    question, answer = "What does the otter eat in the morning?", " Fish, if it isn't asleep. "
    layout = chat.write(question, answer)
    laid = layout.sequence()
    before = rendered(chat, question)
    targets = laid.text_ids[laid.text_rows + 1].tolist()
    assert laid.text_ids.tolist() == [*before, *targets] == laid.ids.tolist() and laid.text_rows[0] == len(before) - 1
    assert chat.tokenizer.decode(targets[:-1]) == answer.strip() and targets[-1] == chat.end_of_turn
    assert chat.end_of_turn in chat.ends  # where an answer is cut when it is generated
    own = conversation(chat, question) + [{"role": "assistant", "content": answer.strip()}]
    whole = chat.tokenizer.apply_chat_template(own)["input_ids"]  # the tokenizer's own word
    assert whole[: len(laid.text_ids)] == laid.text_ids.tolist()
    assert not chat.tokenizer.decode(whole[len(laid.text_ids) :]).strip()
    both = question + answer
    assert [both[a:b] for a, b in layout.offsets[: layout.answer]] and layout.offsets[-1] == (len(both.rstrip()),) * 2
    assert "".join(both[a:b] for a, b in layout.offsets[: layout.answer]) == question
    assert "".join(both[a:b] for a, b in layout.offsets[layout.answer :]) == answer.strip()
    spoken = layout.sequence([Span(True, 0, layout.answer, 0, 5), Span(False, layout.answer, len(layout.ids), 0, 0)])
    assert spoken.ids[spoken.rows + 1].tolist() == targets and spoken.after_speech.all()
    units, after = chat.units([question], [answer.strip()])
    assert units == before and after == [targets[:-1]]


def test_a_template_without_an_end_of_turn_teaches_none():
    bare = PromptFormat(tokenizer("{% for m in messages %}<|im_start|>{{ m['content'] }}\n{% endfor %}"), "chat")
    layout = bare.write("Who?", "Ben.")
    assert bare.end_of_turn is None and bare.tokenizer.decode(layout.ids[layout.answer :]) == "Ben."


def test_a_plain_prompt_reads_no_answer_and_an_empty_one_is_none(chat):
    plain = PromptFormat(tiny.tokenizer())
    assert plain.write(tiny.TEXTS[0], "Yes.") == plain.write(tiny.TEXTS[0])
    assert chat.write(tiny.TEXTS[0], " ") == chat.write(tiny.TEXTS[0], "") == chat.write(tiny.TEXTS[0])
    assert chat.write(tiny.TEXTS[0], "Yes.") != chat.write(tiny.TEXTS[0])


@pytest.mark.parametrize("text", tiny.TEXTS)
def test_offsets_lead_back_into_the_text(chat, text):
    layout = chat.write(text)
    assert layout.ids and layout.stop == turn(text)
    pieces = [text[a:b] for a, b in layout.offsets]
    assert (
        "".join(pieces[: layout.answer]) == text[: layout.stop].strip()
        and "".join(pieces[layout.answer :]) == text[layout.stop :]
    )


def test_the_users_turn_may_be_speech_and_the_template_stays(chat):
    text = tiny.TEXTS[0]
    layout = chat.write(text)
    spans = [Span(True, 0, layout.answer, 0, 7), Span(False, layout.answer, len(layout.ids), 0, 0)]
    laid = layout.sequence(spans)
    frames = np.flatnonzero(laid.frames >= 0)
    assert laid.frames[frames].tolist() == list(range(7)) and (laid.ids[frames] == -1).all()
    kept = laid.ids[laid.ids >= 0].tolist()
    assert kept == layout.before + layout.between + layout.ids[layout.answer :]
    assert laid.ids[: frames[0]].tolist() == layout.before and laid.after_speech.all()
    assert laid.ids[laid.rows + 1].tolist() == laid.text_ids[laid.text_rows + 1].tolist() == layout.ids[layout.answer :]


def test_a_question_is_put_as_the_training_sequences_have_it(chat):
    """Evaluation and the A/B app ask with `units`: the same tokens, and the same places for what is heard."""
    text = tiny.TEXTS[0]
    layout = chat.write(text)
    user, answer = text[: layout.stop].strip(), text[layout.stop :]
    units, after = chat.units([user], [" " + answer])
    assert units == rendered(chat, user) and after == [layout.ids[layout.answer :]]
    recording = np.zeros(8, np.float32)
    units, after = chat.units([recording], [answer])
    assert units[: len(layout.before)] == layout.before and units[len(layout.before)] is recording
    assert units[len(layout.before) + 1 :] == layout.between and after == [layout.ids[layout.answer :]]


def test_plain_questions_follow_the_harness():
    prompt = PromptFormat(tiny.tokenizer())
    encode = lambda text: prompt.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    units, (after, other) = prompt.units(["Who bakes", " bread? "], ["Clara", " Ben"])
    assert units == [prompt.prefix, *encode("Who bakes bread?")]
    assert units[1:] + after == encode("Who bakes bread? Clara") and units[1:] + other == encode("Who bakes bread?  Ben")
    sound = np.zeros(8, np.float32)
    units, _ = prompt.units(["Listen: ", sound, " so"])
    recorded = len(encode("Listen:")) + 1
    assert units[1:recorded] == encode("Listen:") and units[recorded] is sound and units[recorded + 1 :] == encode(" so")
    with pytest.raises(SaladError, match="U[+]FFFC"):
        prompt.units(["a \N{OBJECT REPLACEMENT CHARACTER} b"])


def test_an_answer_ends_where_the_template_ends_a_turn():
    made = tokenizer(CHATML)
    assert PromptFormat(made, "chat").ends == set(made.convert_tokens_to_ids(["<|im_end|>", "<end>"]))
    assert PromptFormat(made).ends == {made.eos_token_id}


@pytest.mark.parametrize(
    ("made", "name", "system", "message"),
    [
        (lambda: tiny.tokenizer(), "chat", None, "no chat template"),
        (lambda: tiny.tokenizer(), "plain", "Be kind.", "a system prompt needs the prompt format chat"),
        (lambda: tokenizer(NO_SYSTEM), "chat", "Be kind.", "refuses this: System role not supported"),
        (lambda: tiny.tokenizer(), "poem", None, "no prompt format 'poem'"),
    ],
)
def test_what_a_tokenizer_cannot_do_is_refused_in_one_line(made, name, system, message):
    with pytest.raises(SaladError, match=message) as error:
        PromptFormat(made(), name, system)
    assert "\n" not in str(error.value)


def test_a_template_that_changes_the_users_words_is_refused():
    shouting = PromptFormat(tokenizer(CHATML.replace("m['content'] }}", "m['content'] | upper }}")), "chat")
    with pytest.raises(SaladError, match="changes the user's text"):
        shouting.write(tiny.TEXTS[0])


def test_the_answer_begins_at_the_sentence_nearest_to_the_middle():
    assert turn("One two. Three? Four five six.") == len("One two. Three? ")
    assert turn("one two three four") == len("one two ")
    assert turn("word") == 4 and turn("  word ") == 7 and turn("") == 0


# --- one format through everything ---

ANSWERS = {tiny.TEXTS[3]: "So does Anna.", tiny.TEXTS[5]: "In the morning, she does."}  # the other texts have none


def answer_to(text: str) -> str:
    """What carries loss of a text in the lab."""
    return ANSWERS[text] + "<|im_end|>" if text in ANSWERS else text[turn(text) :]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tiny.lab(tmp_path_factory.mktemp("lab"), ANSWERS)
    teacher, made = folder / "models" / "teacher", tokenizer(CHATML)
    from transformers import Qwen2ForCausalLM

    llm = Qwen2ForCausalLM.from_pretrained(teacher)
    assert len(made) <= llm.config.vocab_size
    made.save_pretrained(teacher)
    return folder


@pytest.fixture(scope="module")
def trained(place):
    config = tiny.config(sequences=SequenceConfig(prompt="chat", system="You listen.", p_all_speech=0.5))
    run = training.prepare(place, config, "tiny")
    training.train(place, run.run_id)
    return run


def test_a_checkpoint_keeps_its_format_in_training_scoring_and_answers(place, trained):
    step = 12
    folder = checkpoints.at(trained.path, step) / "model"
    model = SpeechLM.from_pretrained(folder, place).eval()
    assert (model.prompt.name, model.prompt.system) == ("chat", "You listen.")
    assert prompt_of(model.settings).sentence is False  # the A/B app reads the same name
    con = store.connect(place)
    spoken = corpora.of_speech(con, ["natural"])
    loader = training.load_data(place, tiny.config(sequences=SequenceConfig(prompt="chat", system="You listen.")), model)
    texts = {recording.sample_id: recording.text for recording in spoken}
    met = set()
    for _ in range(24):
        taken = loader.next()
        for batch in taken.batches:
            for b, sample in enumerate(batch.sample_ids):
                result = "".join(model.tokenizer.decode([i]) for i in batch.targets_N[batch.sample_N == b].tolist())
                assert result == answer_to(texts[sample]) if sample in texts else result in map(answer_to, tiny.TEXTS)
                met.add((taken.kind, result.endswith("<|im_end|>")))
    assert met == {(kind, ends) for kind in ("speech", "text") for ends in (True, False)}
    score(place, model, trained.run_id, step, spoken, "natural", span_units=(1, 4))  # speech in both patterns
    rows = store.connect(place).execute(
        "select sample_id, pattern, string_agg(token, '' order by position), count(start_s), bool_and(after_speech) "
        "from token_divergences group by all"
    ).fetchall()  # fmt: skip
    assert {(s, p) for s, p, *_ in rows} == {(s, p) for s in texts for p in (0, 1)}
    for sample, _, result, times, after in rows:
        assert result == answer_to(texts[sample]) and times == 0 and after
    answers = model.generate([[spoken[0].text], [corpora.audio(place, spoken[0], model.encoder.sample_rate)]], 5)
    assert len(answers) == 2


def test_evaluation_scores_an_answer_where_training_has_it(place, trained):
    model = SpeechLM.from_pretrained(checkpoints.at(trained.path, 12) / "model", place).eval()
    text, asked = tiny.TEXTS[0], tiny.TEXTS[5]
    user, answer = text[: turn(text)].strip(), text[turn(text) :]
    for question, choice, laid, ends in (
        (user, answer, model.prompt.write(text).sequence(), 0),
        (asked, ANSWERS[asked], model.prompt.write(asked, ANSWERS[asked]).sequence(), 1),  # a choice ends no turn
    ):
        ((result, _),) = loglikelihoods(model, [[question]], [[" " + choice]])[0]
        with torch.no_grad():
            logp = model.llm(torch.from_numpy(laid.text_ids)[None]).logits[0].float().log_softmax(-1)
        positions = logp[laid.text_rows, laid.text_ids[laid.text_rows + 1]]
        assert result == pytest.approx(float(positions[: len(positions) - ends].sum()), abs=1e-4)


def test_the_harness_evaluates_a_chat_as_its_own_hf_model_does_with_the_template(place, trained):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from test_harness import own_items, write

    from salad.evaluation import harness
    from salad.evaluation.contenders import Ours
    from salad.evaluation.run import evaluate

    model = SpeechLM.from_pretrained(checkpoints.at(trained.path, 12) / "model", place).eval()
    write(place, "questions", own_items(8))
    evaluate(place, Ours(model, "teacher", teacher=True), ["questions", "questions@2"], ("text",))
    evaluate(place, Ours(model, "stage1", trained.run_id, 12), ["questions"], ("text", "speech"), ["en-us"])
    by_name = {}
    for who, task, modality, item, scores, right in (
        store.connect(place).execute("select contender, task, modality, item_id, scores, correct from evaluations").fetchall()
    ):
        by_name.setdefault((who, task, modality), {})[item] = (scores, right)
    hf = HFLM(pretrained=str(place / "models" / "teacher"), backend="causal", batch_size=4, device="cpu", dtype="float32")
    for name, shots in (("questions", 0), ("questions@2", 2)):
        task = harness.load(place, name)
        plain = type(task.harness).doc_to_text
        task.harness.doc_to_text = plain.__get__(task.harness)
        task.harness.set_config(key="num_fewshot", value=shots)
        task.harness.set_fewshot_seed(seed=harness.FEWSHOT_SEED)
        reference = lm_eval.evaluate(hf, {name: task.harness}, log_samples=True, bootstrap_iters=0, apply_chat_template=True,
                                  system_instruction="You listen.", fewshot_as_multiturn=False)  # fmt: skip
        (rows,) = reference["samples"].values()
        assert len(rows) == 8 and "<|im_start|>assistant" in rows[0]["arguments"][0][0]
        for row in rows:
            scores, right = by_name["teacher", name, "text"][row["doc"]["item_id"]]
            # the harness counts the template's own line break, before the answer, among the answer's tokens
            ids = hf.tokenizer(row["arguments"][0][0].rstrip(), add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logp = hf.model(ids).logits[0, -1].log_softmax(-1)
            (line_break,) = hf.tokenizer("\n", add_special_tokens=False)["input_ids"]
            reference = [float(r[0][0]) - float(logp[line_break]) for r in row["resps"]]
            assert scores == pytest.approx(reference, abs=1e-4) and right == row["acc"]
    text, speech = by_name["stage1", "questions", "text"], by_name["stage1", "questions", "speech"]
    assert len(text) == len(speech) == 8 and all(text[item][0] != speech[item][0] for item in text)
    assert text != by_name["teacher", "questions", "text"]


def test_frames_of_a_users_turn_end_where_its_last_word_does(place, trained):
    model = SpeechLM.from_pretrained(checkpoints.at(trained.path, 12) / "model", place).eval()
    encoded = FrameSource(place, model.prompt, model.encoder)
    for recording in corpora.of_speech(store.connect(place), ["natural"]):
        layout = encoded.layout(recording)
        cut, spans = layout.units, layout.spans([True] * len(layout.units))
        answer_s = next((word[3] for word in recording.words if word[1] >= turn(recording.text)), recording.duration_s)
        if recording.text in ANSWERS:  # the whole recording is the user's turn
            answer_s = recording.duration_s
        n_speech_frames = max(span.frame_end for span in spans if span.speech)
        assert n_speech_frames == int(answer_s * model.encoder.frame_rate + 1e-6) and cut[-1].end_s == answer_s
        laid = layout.sequence(spans)
        assert laid.after_speech.all() and len(laid.rows) == len(layout.prompt_layout.ids) - cut[-1].token_end


def test_a_child_of_another_format_is_refused(place, trained):
    child = tiny.config(kind="stage2", contender="stage2", parent=trained.run_id)
    with pytest.raises(SaladError, match="another prompt"):
        training.start_model(place, child)
    other = child.model_copy(update={"sequences": SequenceConfig(prompt="chat", system="You speak.")})
    with pytest.raises(SaladError, match="another system"):
        training.start_model(place, other)


def test_a_recording_in_a_chat_takes_the_place_of_the_words(place, trained):
    model = SpeechLM.from_pretrained(checkpoints.at(trained.path, 12) / "model", place).eval()
    recording = corpora.of_speech(store.connect(place), ["natural"])[0]
    samples = corpora.audio(place, recording, model.encoder.sample_rate)
    with torch.no_grad():
        result = model.prompt_embeddings([samples])[0]
        frames = model.adapter(model.encoder(torch.from_numpy(samples))[None])[0]
        before, between = (model.llm.get_input_embeddings()(torch.tensor(x)) for x in model.prompt.write("A. B.")[0:4:3])
    assert torch.equal(result, torch.cat([before, frames, between]))


# --- templates of the wild ---

QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)  # as Qwen3's: a last answer has an empty block before it
OPEN = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'].split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if thinking is not defined or thinking %}<think>\n{% endif %}{% endif %}"
)  # as DeepSeek-R1's: asks with a block left open, writes an answer down without one
ALWAYS_OPEN = OPEN.replace("{% if thinking is not defined or thinking %}<think>\n{% endif %}", "<think>\n")
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'].strip() }} [/INST]"
    "{% else %} {{ m['content'].strip() }}<|im_end|>{% endif %}{% endfor %}"
)  # as Llama 2's: no generation prompt of its own, a blank before the answer
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
DEAF = HEADERS.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")


def wild(template):
    made = tiny.tokenizer(bos=True)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"]})
    made.chat_template = template
    return made


@pytest.mark.parametrize(("template", "given", "lead"), [
    (QWEN3, {}, "<think>\n\n</think>\n\n"), (QWEN3, {"enable_thinking": False}, ""), (OPEN, {"thinking": False}, ""),
    (INST, {}, " "), (DATED, {}, ""), (CHATML, {}, ""),
], ids=["thinks", "told not to", "open, told not to", "blank", "dated", "plain"])  # fmt: skip
def test_training_and_asking_lay_out_what_the_template_itself_writes_down(template, given, lead):
    tokenizer = wild(template)
    prompt = PromptFormat(tokenizer, "chat", template=given)
    question, answer = "What does the otter eat?", "Fish, and no more."
    layout = prompt.write(question, answer)
    ids = layout.sequence().text_ids.tolist()
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if template is DATED:  # the same on every day
        tokenizer.chat_template = "Today: 26 Jul 2024\n" + CHATML
    whole = tokenizer.apply_chat_template(messages, tokenize=False, **given)
    assert whole.startswith(tokenizer.decode(ids)) and answer in tokenizer.decode(ids)[-len(answer) - 10 :]
    assert tokenizer.decode(layout.ids[layout.answer :]).strip().startswith(answer)
    assert prompt.rendered().endswith(lead) and prompt.rendered().count("\N{OBJECT REPLACEMENT CHARACTER}") == 1
    units, after = prompt.units([question], [answer])
    scored = units + after[0]
    assert tokenizer.decode(scored) == tokenizer.decode(ids[: len(scored)]) and scored == ids[: len(scored)]


@pytest.mark.parametrize(
    ("template", "system", "why"),
    [
        (OPEN, None, r"otherwise than it writes one down.*--set 'sequences.template=\{\"thinking\": false\}' it does"),
        (ALWAYS_OPEN, None, "otherwise than it writes one down.*use another LLM"),
        (NO_SYSTEM, "You listen.", "System role not supported"),
        (DEAF, "You listen.", "leaves the system prompt out"),
    ],
)
def test_a_template_whose_answers_cannot_be_told_apart_is_refused(template, system, why):
    with pytest.raises(SaladError, match=why) as error:
        PromptFormat(wild(template), "chat", system)
    assert "\n" not in str(error.value)


def test_arguments_are_the_templates_alone():
    with pytest.raises(SaladError, match="add_generation_prompt is not the template's"):
        PromptFormat(wild(CHATML), "chat", template={"add_generation_prompt": False})
    with pytest.raises(SaladError, match="sequences.prompt=chat"):
        PromptFormat(wild(CHATML), template={"enable_thinking": False})


def test_a_text_that_the_template_changes_is_left_out_and_the_others_stay():
    prompt = PromptFormat(wild(CHATML.replace("{{ m['content'] }}", "{{ m['content'].replace('&', 'and') }}")), "chat")
    with pytest.warns(UserWarning, match="changes this text"):
        layout = prompt.write("Bread & butter?", "Yes.")
    assert layout.ids == [] and len(layout.sequence().rows) == 0
    assert len(prompt.write("Bread and butter?", "Yes.").sequence().rows) > 0


def test_a_checkpoint_keeps_the_arguments_with_what_they_rendered(tmp_path):
    import json

    folder = tiny.teacher(tmp_path / "models" / "teacher")
    tiny.encoder(tmp_path / "models" / "encoder")
    made = wild(QWEN3)
    made.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    from transformers import Qwen2Config, Qwen2ForCausalLM

    Qwen2ForCausalLM(Qwen2Config(**config | {"vocab_size": len(made) + 4})).save_pretrained(folder)
    run = tiny.config(sequences=SequenceConfig(prompt="chat", template={"enable_thinking": False}))
    model = SpeechLM.build(run, tmp_path)
    model.save_pretrained(tmp_path / "alone")
    settings = json.loads((tmp_path / "alone" / "speech_lm.json").read_text())
    assert settings["template"] == {"enable_thinking": False} and settings["rendered"].endswith("<think>\n\n</think>\n\n")
    assert SpeechLM.from_pretrained(tmp_path / "alone").prompt.template == {"enable_thinking": False}
    for path in (tmp_path / "alone").rglob("chat_template.jinja"):
        path.write_text(path.read_text().replace("</think>\n\n", "</think>\n"))
    with pytest.raises(SaladError, match="renders a question otherwise than when this was trained"):
        SpeechLM.from_pretrained(tmp_path / "alone")
    settings.pop("rendered")  # as it was written before this was kept
    (tmp_path / "alone" / "speech_lm.json").write_text(json.dumps(settings))
    SpeechLM.from_pretrained(tmp_path / "alone")
