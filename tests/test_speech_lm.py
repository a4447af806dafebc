"""The speech LM: what each position may hear, the teacher inside it, its folder, its answers."""

import contextlib
import gc
import json
import shutil

import numpy as np
import pytest
import torch
from tiny import TEXTS, config, encoder, spoken_text, teacher

from salad import SaladError
from salad.config import LLMConfig
from salad.data.batches import collate
from salad.data.interleaving import Span, interleave, interleaved_sequence, scoring_patterns, token_offsets, units
from salad.divergence import divergences
from salad.evaluation.scoring import Recording, loglikelihoods
from salad.models.speech_lm import SpeechLM, load_llm, load_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    teacher(folder / "models" / "teacher")
    encoder(folder / "models" / "encoder")
    return folder


def shaken(model, seed=3):
    """LoRA and adapter moved away from their start, so that student and teacher differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model(place):
    return shaken(SpeechLM.build(config(), place).eval())


def batch_of(model, texts, patterns, sounds=None, first=0):
    laid, speech = [], []
    for i, text in enumerate(texts, first):
        spoken, samples = spoken_text(text, i)
        samples = samples if sounds is None else sounds[i]
        ids, offsets = token_offsets(model.tokenizer, text)
        cut = units(text, offsets, spoken.words, spoken.duration_s)
        spans = interleave(cut, patterns(i, len(cut)), model.encoder.frame_rate)
        laid.append(interleaved_sequence(model.prefix, ids, spans))
        speech.append(model.encoder(torch.from_numpy(samples)).numpy())
    return collate(laid, speech, [f"s{i}" for i in range(len(texts))])


def test_an_all_text_interleaving_gives_m_exactly_zero(model):
    batch = batch_of(model, TEXTS, lambda i, n: [False] * n)
    measured = divergences(model, model.teacher, batch)
    assert (measured.positions.m == 0).all() and (measured.positions.f > 0).all()
    assert torch.equal(measured.positions.f, measured.positions.d)  # where all is text, D is F
    assert measured.samples.n_positions.sum() == 0 and measured.samples.m.isnan().all()  # no speech before any of them


def test_a_teacher_off_by_one_is_caught(model):
    batch = batch_of(model, TEXTS, lambda i, n: [False] * n)
    untrained = SpeechLM.build(config(), model.lab).eval()
    right = divergences(untrained, untrained.teacher, batch).positions.f.mean()
    batch.text_rows_N = batch.text_rows_N - 1
    batch.text_rows_N[batch.text_rows_N < 0] = 0
    wrong = divergences(untrained, untrained.teacher, batch).positions.d.mean()
    assert right == 0 and wrong > 0.5


def test_sound_after_a_spans_end_changes_none_of_its_frames_nor_predictions(model):
    text, half = TEXTS[0], lambda i, n: [True] * 3 + [False] * (n - 3)
    samples = spoken_text(text, 0)[1]
    first = batch_of(model, [text], half, [samples])
    changed = samples.copy()
    end_s = int(first.frames_BT.max() + 1) / model.encoder.frame_rate
    changed[int(end_s * 16_000) :] = 0.9
    second = batch_of(model, [text], half, [changed])
    assert torch.equal(first.speech_PFD, second.speech_PFD)
    assert torch.equal(model.hidden(first), model.hidden(second))


def test_padding_and_neighbours_in_a_batch_change_nothing(model):
    patterns = lambda i, n: scoring_patterns(0, f"s{i}", n)[0]  # noqa: E731
    together = divergences(model, model.teacher, batch_of(model, TEXTS, patterns)).samples
    for i, text in enumerate(TEXTS):
        alone = divergences(model, model.teacher, batch_of(model, [text], patterns, first=i)).samples
        assert alone.n_positions[0] == together.n_positions[i] > 0
        for name in ("m", "f", "d"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[i], rtol=1e-4, atol=1e-6)


def test_with_lora_the_teacher_is_the_original_bit_for_bit_and_no_second_copy(place, model):
    original = load_llm(LLMConfig(), place)
    ids = torch.randint(0, 300, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model.teacher.hidden(ids) @ model.teacher.head.T
        reference = original(input_ids=ids).logits
        student = model.text_hidden(ids) @ model.head.T
    assert torch.equal(own, reference) and not torch.allclose(student, reference, atol=1e-3)
    frozen = sum(p.numel() for p in model.llm.parameters() if not p.requires_grad)
    assert frozen == sum(p.numel() for p in original.parameters())
    assert model._beside["original"] is None and model._beside["peft"].base_model.model is model.llm


def test_the_teacher_has_no_dropout_though_the_student_trains(tmp_path):
    teacher(tmp_path / "models" / "teacher")
    encoder(tmp_path / "models" / "encoder")
    path = tmp_path / "models" / "teacher" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_dropout": 0.5}))
    made = shaken(SpeechLM.build(config(llm=LLMConfig(lora_rank=4, lora_dropout=0.5)), tmp_path)).train()
    ids = torch.arange(3, 14)[None]
    original = load_llm(LLMConfig(), tmp_path).get_decoder()
    with torch.no_grad():
        assert torch.equal(made.teacher.hidden(ids), original(ids).last_hidden_state)
        assert not torch.equal(made.text_hidden(ids), made.text_hidden(ids))  # the student's is on
    assert made.llm.training and all(module.training for module in made.llm.modules())


def test_with_lora_no_second_copy_is_in_memory(place):
    """Of all tensors alive, those as large as the LLM's own are held once, whoever holds them."""

    def held():
        gc.collect()
        result = (o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.dim() == 2 and o.shape[0] > 300)
        return sum(dict((t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in result).values())

    before = held()
    made = SpeechLM.build(config(), place)
    assert held() - before == made.llm.get_input_embeddings().weight.nbytes
    made.train()
    teacher = made.teacher  # asking it makes no copy either
    teacher.hidden(torch.arange(8)[None])
    assert held() - before == made.llm.get_input_embeddings().weight.nbytes
    full = SpeechLM.build(config(llm=LLMConfig(finetune="full")), place)
    assert held() - before == 3 * full.llm.get_input_embeddings().weight.nbytes  # that one has two


@pytest.fixture
def full_parent(place):
    """A checkpoint trained in full, in the lab where a run would have left it."""
    folder = place / "runs" / "rfedcba987654" / "checkpoints" / "step-9" / "model"
    full = shaken(SpeechLM.build(config(llm=LLMConfig(finetune="full")), place).eval())
    full.save_trained(folder)
    yield full, folder
    shutil.rmtree(place / "runs")


def test_lora_on_a_parent_trained_in_full_has_the_original_as_its_teacher(place, tmp_path, full_parent):
    parent, folder = full_parent
    child = SpeechLM.child(folder, config(llm=LLMConfig(lora_rank=4), parent="rfedcba987654"), place)
    batch = batch_of(child, TEXTS[:2], lambda i, n: [True] * 2 + [False] * (n - 2))
    original = load_llm(LLMConfig(), place).get_decoder()
    with torch.no_grad():
        wanted = original(batch.text_ids_BS).last_hidden_state
        start = parent.hidden(batch)
        assert torch.equal(child.hidden(batch), start)  # LoRA begins at the parent, adapter and all
        assert torch.equal(child.teacher.hidden(batch.text_ids_BS), wanted)
        assert not torch.allclose(parent.text_hidden(batch.text_ids_BS), wanted, atol=1e-2)
    assert all("lora" in n for n, p in child.llm.named_parameters() if p.requires_grad)
    shaken(child)
    with torch.no_grad():
        after = child.hidden(batch)
    for save, lab in ((child.save_trained, place), (child.save_pretrained, None)):
        save(tmp_path / save.__name__)
        again = SpeechLM.from_pretrained(tmp_path / save.__name__, lab).eval()
        with torch.no_grad():
            assert torch.equal(again.hidden(batch), after)
            assert torch.equal(again.teacher.hidden(batch.text_ids_BS), wanted)
    grandchild = SpeechLM.child(tmp_path / "save_trained", config(llm=LLMConfig(lora_rank=4)), place)
    with torch.no_grad():
        assert torch.equal(grandchild.hidden(batch), after) and grandchild._beside["original"] is not None
    weights = folder / "llm" / "model.safetensors"  # a parent that changed underneath is refused
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(SaladError, match="its files have changed"):
        SpeechLM.from_pretrained(tmp_path / "save_trained", place)


def test_a_full_stage_on_a_lora_parent_is_refused(place, tmp_path):
    SpeechLM.build(config(), place).save_trained(tmp_path / "parent")
    with pytest.raises(SaladError, match="another llm; a child goes on with the same, or with LoRA"):
        SpeechLM.child(tmp_path / "parent", config(llm=LLMConfig(finetune="full", lora_rank=4)), place)


def test_another_llm_may_teach_where_its_tokenizer_is_the_same(place, tmp_path):
    teacher(place / "models" / "large", padded=52, seed=4)
    made = shaken(SpeechLM.build(config(llm=LLMConfig(lora_rank=4, teacher="models/large")), place).eval())
    large = load_llm(LLMConfig(name="models/large"), place)
    assert made.teacher.head.shape[0] == made.head.shape[0] + 32  # two padded vocabularies
    batch = batch_of(made, TEXTS[:2], lambda i, n: [True] * 2 + [False] * (n - 2))
    assert torch.equal(made.teacher.hidden(batch.text_ids_BS), large.get_decoder()(batch.text_ids_BS).last_hidden_state)
    out = made(batch)
    out.loss.backward()
    assert out.loss.isfinite()
    made.save_pretrained(tmp_path / "alone")
    again = SpeechLM.from_pretrained(tmp_path / "alone").eval()
    assert torch.equal(again(batch).loss, out.loss)


def test_two_different_tokenizers_are_refused(place):
    other = place / "models" / "other"
    teacher(other)
    more = load_tokenizer("models/other", place)
    more.add_tokens(["<more>"])
    more.save_pretrained(other)
    with pytest.raises(SaladError, match="'models/teacher' cannot learn from 'models/other'.*<more>.*None in one"):
        SpeechLM.build(config(llm=LLMConfig(teacher="models/other")), place)
    teacher(other)  # the same ids, cut another way
    whole = json.loads((other / "tokenizer.json").read_text())
    whole["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(SaladError, match="they differ in their model"):
        SpeechLM.build(config(llm=LLMConfig(teacher="models/other")), place)


def test_what_is_saved_opens_with_plain_transformers_and_peft(place, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.arange(3, 14)[None]
    for finetune in ("full", "lora"):
        made = shaken(SpeechLM.build(config(llm=LLMConfig(finetune=finetune, lora_rank=4)), place).eval())
        made.save_pretrained(tmp_path / finetune)
        folder = tmp_path / finetune / ("llm" if finetune == "full" else "base")
        llm = AutoModelForCausalLM.from_pretrained(folder)
        if finetune == "lora":
            llm = PeftModel.from_pretrained(llm, tmp_path / finetune / "lora")
        with torch.no_grad():
            assert torch.equal(llm.eval()(ids).logits, made.llm(ids).logits)
        assert AutoTokenizer.from_pretrained(folder).get_vocab() == made.tokenizer.get_vocab()
        kept = {path.name for path in (tmp_path / finetune).rglob("*") if path.is_file()}
        assert not [name for name in kept if name.endswith((".bin", ".pt", ".pkl", ".pth"))]


def test_trained_in_full_the_teacher_is_a_frozen_second_copy(place):
    full = config(llm=LLMConfig(finetune="full"))
    student = shaken(SpeechLM.build(full, place).eval())
    ids = torch.arange(12)[None]
    assert torch.equal(student.teacher.hidden(ids), load_llm(LLMConfig(), place).get_decoder()(ids).last_hidden_state)
    assert not any(p.requires_grad for p in student._beside["original"].parameters())
    assert len(list(student.parameters())) == len({id(p) for p in student.parameters()})


@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_saved_model_loads_back_the_same(place, tmp_path, finetune, alone):
    model = shaken(SpeechLM.build(config(llm=LLMConfig(finetune=finetune, lora_rank=4)), place).eval())
    (model.save_pretrained if alone else model.save_trained)(tmp_path / "saved")
    loaded = SpeechLM.from_pretrained(tmp_path / "saved", None if alone else place).eval()
    batch = batch_of(model, TEXTS[:2], lambda i, n: [True] * 2 + [False] * (n - 2))
    with torch.no_grad():
        assert torch.equal(model.hidden(batch), loaded.hidden(batch))
        assert torch.equal(model.teacher.hidden(batch.text_ids_BS), loaded.teacher.hidden(batch.text_ids_BS))
    assert not list((tmp_path / "saved").rglob("*.bin")) and not list((tmp_path / "saved").rglob("*.pt"))


def test_a_checkpoint_whose_teacher_has_changed_is_refused(tmp_path):
    teacher(tmp_path / "models" / "teacher")
    encoder(tmp_path / "models" / "encoder")
    SpeechLM.build(config(), tmp_path).save_trained(tmp_path / "saved")
    teacher(tmp_path / "models" / "teacher", seed=5)
    with pytest.raises(SaladError, match="its files have changed"):
        SpeechLM.from_pretrained(tmp_path / "saved", tmp_path)


def test_a_chat_template_that_has_changed_is_refused_and_an_older_checkpoint_stays_readable(tmp_path):
    from salad.models.names import folder_sha256

    folder, settings = teacher(tmp_path / "models" / "teacher"), tmp_path / "saved" / "speech_lm.json"
    encoder(tmp_path / "models" / "encoder")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    SpeechLM.build(config(), tmp_path).save_trained(tmp_path / "saved")
    SpeechLM.from_pretrained(tmp_path / "saved", tmp_path)
    (folder / "additional_chat_templates").mkdir()
    for path in (folder / "additional_chat_templates" / "tool.jinja", folder / "chat_template.jinja"):
        before = path.read_text() if path.exists() else None
        path.write_text("{{ messages }} and more")
        with pytest.raises(SaladError, match="its files have changed"):
            SpeechLM.from_pretrained(tmp_path / "saved", tmp_path)
        path.unlink() if before is None else path.write_text(before)
    SpeechLM.from_pretrained(tmp_path / "saved", tmp_path)
    content = json.loads(settings.read_text())  # as it was written before templates counted
    content["frozen"]["llm"] = {"name": "models/teacher", "sha256": folder_sha256(folder, templates=False)}
    settings.write_text(json.dumps(content))
    SpeechLM.from_pretrained(tmp_path / "saved", tmp_path)


def test_a_tokenizer_without_bos_begins_with_its_end_of_text_token(tmp_path):
    teacher(tmp_path / "models" / "teacher", bos=False)
    encoder(tmp_path / "models" / "encoder")
    model = SpeechLM.build(config(), tmp_path)
    assert model.prefix == model.tokenizer.eos_token_id


def test_choices_score_as_whole_texts_do(model):
    contexts = [TEXTS[0][:20], "What is the capital of France?", spoken_text(TEXTS[3], 4)[1]]
    prompts = [[contexts[0]], [contexts[1]], [Recording("pears", contexts[2])]]
    choices = [[" fish.", " a very long choice of many words", " x"], [" Paris", " Rome"], [" pears", " plums and pears"]]
    for as_teacher in (False, True):
        pick = 2 if as_teacher else 3
        result = loglikelihoods(model, prompts[:pick], choices[:pick], teacher=as_teacher)
        for context, some, values in zip(contexts, choices, result, strict=False):
            for choice, (value, _) in zip(some, values, strict=True):
                ids = model.tokenizer(choice, add_special_tokens=False)["input_ids"]
                off = model.teacher.switched() if as_teacher else contextlib.nullcontext()
                with torch.no_grad(), off:
                    before = model.prompt_embeddings([context])
                    after = model.llm.get_input_embeddings()(torch.tensor([ids]))
                    logits = model.llm(inputs_embeds=torch.cat([before, after], 1)).logits[0]
                logp = logits.float().log_softmax(-1)[before.shape[1] - 1 : -1]
                assert abs(float(logp[range(len(ids)), ids].sum()) - value) < 1e-4


def test_generate_with_its_cache_answers_as_a_plain_loop_without_one(model):
    """Batched, padded on the left and cached, against one forward pass a token over all there is so far."""
    prompts = [["What does the otter eat?"], ["Listen: ", spoken_text(TEXTS[1], 1)[1], " so"], [TEXTS[4]],
               [spoken_text(TEXTS[2], 2)[1]]]  # fmt: skip
    answers = model.generate(prompts, max_new_tokens=10, stop=())
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            vectors, result = model.prompt_embeddings(prompt), []
            for _ in range(10):
                logits = model.llm(inputs_embeds=vectors, use_cache=False).logits[0, -1, : model.vocab_size]
                token = int(logits.argmax())
                if token in model.prompt.ends:
                    break
                result.append(token)
                vectors = torch.cat([vectors, model.llm.get_input_embeddings()(torch.tensor([[token]]))], 1)
        assert answer == model.tokenizer.decode(result, skip_special_tokens=True)


def test_streaming_answers_as_generate_does(model):
    prompts = [["What does the otter eat?"], ["Listen: ", spoken_text(TEXTS[1], 1)[1], " so"], [TEXTS[4]]]
    whole = model.generate(prompts, max_new_tokens=12, stop=("?",))
    for prompt, answer in zip(prompts, whole, strict=True):
        tokens = list(model.stream(prompt, max_new_tokens=12, stop=("?",)))
        assert "".join(item.text for item in tokens) == answer
        assert model.tokenizer.decode([item.token for item in tokens], skip_special_tokens=True).startswith(answer)
    other = [item.token for item in model.stream(prompts[0], max_new_tokens=12, temperature=2.0, seed=1)]
    assert other == [item.token for item in model.stream(prompts[0], max_new_tokens=12, temperature=2.0, seed=1)]


def test_streaming_keeps_the_text_before_a_stop_string_wherever_its_tokens_begin_and_end(model):
    """Every piece of an answer as the stop string: within one token, over several, at a token's end."""
    prompt, within, over = ["What does the otter eat?"], 0, 0
    tokens = [streamed.token for streamed in model.stream(prompt, max_new_tokens=10, stop=())]
    text = model.tokenizer.decode(tokens, skip_special_tokens=True)
    ends = [len(model.tokenizer.decode(tokens[:n], skip_special_tokens=True)) for n in range(len(tokens) + 1)]
    for start in range(1, len(text)):
        for length in (1, 3, 5):
            word = text[start : start + length]
            outcome = list(model.stream(prompt, max_new_tokens=10, stop=(word,)))
            cut = text.index(word)
            assert "".join(streamed.text for streamed in outcome) == text[:cut], word
            assert [streamed.token for streamed in outcome] == tokens[: sum(end < cut for end in ends)]
            first = max(n for n, end in enumerate(ends) if end <= cut)  # the token in which the stop string begins
            within += ends[first] < cut and cut + len(word) <= ends[first + 1]
            over += cut + len(word) > ends[first + 1]
    assert within and over
    assert model.generate([prompt], max_new_tokens=10, stop=(text[4:7],)) == [text[: text.index(text[4:7])]]


def test_a_fully_trained_students_teacher_reads_with_its_own_embeddings(place):
    student = shaken(SpeechLM.build(config(llm=LLMConfig(finetune="full")), place).eval())
    plain = SpeechLM.build(config(), place).eval()  # untrained: its student is the teacher
    contexts, choices = ["What does the otter eat?"], [[" Fish.", " A book and a pear."]]
    scores = lambda model, **how: [s for s, _ in loglikelihoods(model, [contexts], choices, **how)[0]]  # noqa: E731
    result = scores(student, teacher=True)
    assert result == pytest.approx(scores(plain), abs=1e-4)
    assert result != pytest.approx(scores(student), abs=1e-2)
    streamed = [outcome.token for outcome in student.stream(contexts, max_new_tokens=8, teacher=True)]
    assert streamed == [outcome.token for outcome in plain.stream(contexts, max_new_tokens=8)]


def test_an_answer_never_holds_an_id_that_only_pads_the_head(model):
    assert model.head.shape[0] > model.vocab_size
    result = model.generate([[text] for text in TEXTS], max_new_tokens=20, stop=(), temperature=50.0, seed=1)
    assert all(isinstance(text, str) for text in result)
    ids = [streamed.token for text in TEXTS for streamed in model.stream([text], max_new_tokens=20, stop=(), temperature=50.0)]
    assert max(ids) < model.vocab_size


def test_a_span_beyond_the_sound_is_never_looked_up(model):
    laid = interleaved_sequence(model.prefix, [5, 6], [Span(False, 0, 2, 0, 0)])
    batch = collate([laid], [np.zeros((0, model.encoder.dim), np.float32)], ["s"])
    assert batch.speech_PFD is None and model.hidden(batch).shape[:2] == (1, 3)
