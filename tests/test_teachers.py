"""Causal LMs by name: each architecture of today, at toy sizes, through objective, scoring, evaluation and generation."""

import pytest
import torch
from tiny import TEXTS, config, encoder, spoken_text
from zoo import SEEING, TEACHERS, causal_lm

from salad import SaladError
from salad.config import LLMConfig
from salad.data.batches import collate
from salad.data.interleaving import interleave, interleaved_sequence, scoring_patterns, token_offsets, units
from salad.divergence import divergences
from salad.evaluation.scoring import loglikelihoods
from salad.models import SpeechLM
from salad.models.heads import hidden_of
from salad.models.packing import keeps_documents_apart
from salad.models.speech_lm import load_llm

CARRIES_A_STATE = {"qwen3_next", "qwen3_5_text", "qwen3_5", "olmo_hybrid", "granitemoehybrid", "falcon_h1", "lfm2"}
LEAKS = CARRIES_A_STATE | {"gpt_oss"}  # whose masks are made without the positions


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    encoder(folder / "models" / "encoder")
    return folder


@pytest.fixture(scope="module", params=[*TEACHERS, *SEEING])
def model(request, lab):
    """Student and teacher of one architecture, moved apart."""
    causal_lm(lab / "models" / request.param, request.param)
    made = SpeechLM.build(config(llm=LLMConfig(name=f"models/{request.param}", lora_rank=4)), lab).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    made.kind = request.param
    return made


def batch_of(model: SpeechLM, context: int | None):
    laid, frames = [], []
    for i, text in enumerate(TEXTS[:4]):
        spoken, samples = spoken_text(text, i)
        ids, offsets = token_offsets(model.tokenizer, text)
        cut = units(text, offsets, spoken.words, spoken.duration_s)
        spans = interleave(cut, scoring_patterns(0, f"s{i}", len(cut))[0], model.encoder.frame_rate)
        laid.append(interleaved_sequence(model.prefix, ids, spans))
        frames.append(model.encoder(torch.from_numpy(samples)).numpy())
    return collate(laid, frames, list("abcd"), context=context)


def test_packed_rows_give_what_each_sample_gives_alone(model):
    alone, packed = batch_of(model, None), batch_of(model, 256)
    assert len(packed.ids_BT) < len(alone.ids_BT) == 4
    assert keeps_documents_apart(model.llm) == (model.kind not in LEAKS)
    one, other = (divergences(model, model.teacher, batch).positions for batch in (alone, packed))
    for name in ("m", "f", "d"):
        assert getattr(one, name).max() > 0.01
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-3, atol=1e-4)
    losses = []
    for batch in (alone, packed):
        model.zero_grad(set_to_none=True)
        out = model(batch, alpha=0.5)
        out.loss.backward()
        losses.append((float(out.loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4) and len(losses[0][1]) == len(losses[1][1]) > 10
    largest = max(float(g.abs().max()) for g in losses[0][1])
    for mine, theirs in zip(losses[0][1], losses[1][1], strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4 * largest)


def test_scores_and_answers_are_those_of_its_own_forward(model):
    original = load_llm(LLMConfig(name=f"models/{model.kind}"), model.lab)
    sound = spoken_text(TEXTS[1], 1)[1]
    asked = [["What does the otter eat?"], ["Ben likes pears, and his sister"]]
    ids_of = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    told = loglikelihoods(model, asked, [[" Fish.", " Plums do."]] * 2, teacher=True)
    for (prompt,), scores in zip(asked, told, strict=True):
        for after, (score, _) in zip((" Fish.", " Plums do."), scores, strict=True):
            whole, n = [model.prefix, *ids_of(prompt + after)], 1 + len(ids_of(prompt))
            with torch.no_grad():
                logp = original(input_ids=torch.tensor([whole]), use_cache=False).logits[0].float().log_softmax(-1)
            wanted = sum(float(logp[i - 1, whole[i]]) for i in range(n, len(whole)))
            assert score == pytest.approx(wanted, abs=2e-3)
    # speech in a prompt: several at once, one at a time and token by token are one answer
    prompts = [["Say: ", sound], [sound[: len(sound) // 2], " so Who"], ["The"]]
    answers = model.generate(prompts, max_new_tokens=6)
    assert any(answers)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert "".join(step.text for step in model.stream(prompt, max_new_tokens=6)) == answer


def test_lora_is_in_every_layer_of_the_text_half_and_nowhere_else(model):
    adapted = {name.rpartition(".lora_A")[0] for name, _ in model.llm.named_parameters() if ".lora_A" in name}
    inside = {name for name, module in model.llm.named_modules() if module in set(model.llm.get_decoder().modules())}
    assert adapted and adapted <= inside
    layers = {name.partition(".layers.")[2].partition(".")[0] for name in adapted}
    assert layers == {"0", "1", "2", "3"}


@pytest.mark.parametrize("kind", sorted(LEAKS | {"gemma3_text", "qwen3"}))
def test_what_stands_in_front_of_a_document_in_its_row_changes_nothing(lab, kind):
    if not (lab / "models" / kind).is_dir():
        causal_lm(lab / "models" / kind, kind)
    llm = load_llm(LLMConfig(name=f"models/{kind}"), lab)
    torch.manual_seed(0)
    rows, place = torch.randint(0, 300, (2, 24)), torch.tensor([*range(7), *range(9), *range(5), *range(3)])
    changed = rows.clone()
    changed[:, :7] = torch.randint(0, 300, (2, 7))
    with torch.no_grad():
        one, other = (hidden_of(llm, input_ids=ids, position_ids=place.expand(2, -1)) for ids in (rows, changed))
        alone = hidden_of(llm, input_ids=rows[:, 7:16])
    assert torch.equal(one[:, 7:], other[:, 7:]) and not torch.equal(one[:, :7], other[:, :7])
    torch.testing.assert_close(one[:, 7:16], alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


def test_an_llm_that_needs_the_tokens_beside_their_embeddings_is_refused_in_a_line(tmp_path):
    """Gemma 4's per-layer embeddings are looked up by token, which a frame of speech is not."""
    causal_lm(tmp_path / "gemma", "gemma4_text", hidden_size_per_layer_input=8, vocab_size_per_layer_input=400)
    with pytest.raises(SaladError, match="embeddings of tokens only") as error:
        load_llm(LLMConfig(name=str(tmp_path / "gemma")), None)
    assert "\n" not in str(error.value)
