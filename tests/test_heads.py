"""From hidden states to logits: every kind of output head gives the model's own logits, wherever logits are computed."""

import math

import pytest
import torch
from tiny import TEXTS, config, encoder, spoken_text, tokenizer
from torch.nn import functional as F

from salad import SaladError
from salad.config import LLMConfig, ObjectiveConfig
from salad.data.batches import collate
from salad.data.interleaving import interleave, interleaved_sequence, token_offsets, units
from salad.divergence import divergences
from salad.evaluation.scoring import loglikelihoods
from salad.models import SpeechLM
from salad.models.heads import form_of, head_of, hidden_of
from salad.models.speech_lm import load_llm
from salad.objective import Head, distillation_loss, position_divergences
from salad.objective.teacher_cache import cache_rows, cached_distillation_loss
from salad.passes.embed import of_llm

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "intermediate_size": 48, "max_position_embeddings": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256,
         "n_inner": 48, "rotary_dim": 4}  # fmt: skip
FAMILIES = {  # what makes each one's head its own, in its configuration's words
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 3.0},
    "granitemoe": {"logits_scaling": 6.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25},
    "phi": {},
    "gptj": {},
    "codegen": {},
    "gemma2": {"final_logit_softcapping": 2.5, "query_pre_attn_scalar": 8},
    "gemma3_text": {"final_logit_softcapping": 2.5, "query_pre_attn_scalar": 8},
    "vaultgemma": {"final_logit_softcapping": 2.5, "query_pre_attn_scalar": 8},
    "bert": {"is_decoder": True},
    "stablelm": {},
}
BENT = {"gemma2", "gemma3_text", "vaultgemma"}
BIASED = {"phi", "gptj", "codegen", "bert"}
SCALED = {"granite": 1 / 8, "granitemoe": 1 / 6, "cohere": 0.0625, "cohere2": 0.25}


def make(folder, kind: str):
    """A folder of a tiny random causal LM of this architecture, loud enough for its head to matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tok = tokenizer()
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(
        kind, vocab_size=len(tok) + 8, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id, **SIZES | FAMILIES[kind],
    ))  # fmt: skip
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name.lower() and "ln_" not in name:
                parameter.normal_(0, 0.3)
    made.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    lab = tmp_path_factory.mktemp("lab")
    encoder(lab / "models" / "encoder")
    for kind in FAMILIES:
        make(lab / "models" / kind, kind)
    return lab


def built(place, kind: str, **llm) -> SpeechLM:
    model = SpeechLM.build(config(llm=LLMConfig(name=f"models/{kind}", lora_rank=4, **llm)), place).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def ids_of(model: SpeechLM, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def batch_of(model: SpeechLM, speech: bool = True):
    laid, frames = [], []
    for i, text in enumerate(TEXTS[:3]):
        spoken, samples = spoken_text(text, i)
        ids, offsets = token_offsets(model.tokenizer, text)
        cut = units(text, offsets, spoken.words, spoken.duration_s)
        spans = interleave(cut, [speech and n % 2 == 0 for n in range(len(cut))], model.encoder.frame_rate)
        laid.append(interleaved_sequence(model.prefix, ids, spans))
        frames.append(model.encoder(torch.from_numpy(samples)).numpy() if speech else None)
    return collate(laid, frames, list("abc"))


@pytest.mark.parametrize("kind", FAMILIES)
def test_everything_that_computes_logits_agrees_with_the_models_own_forward(place, kind):
    model, original = built(place, kind), load_llm(LLMConfig(name=f"models/{kind}"), place)
    batch, vocab = batch_of(model), model.vocab_size
    with torch.no_grad():
        q = original(input_ids=batch.text_ids_BS, use_cache=False).logits.flatten(0, 1)[batch.text_rows_N, :vocab]
        p = model.llm(input_ids=batch.text_ids_BS, use_cache=False).logits.flatten(0, 1)[batch.text_rows_N, :vocab]
        c = model.llm(inputs_embeds=model.embed(batch), use_cache=False).logits.flatten(0, 1)[batch.rows_N, :vocab]
    log_q, log_p, log_c = (x.double().log_softmax(-1) for x in (q, p, c))
    kl = lambda a, b: (a.exp() * (a - b)).sum(-1)  # noqa: E731
    # divergences, and the objective with its gradient
    measured = divergences(model, model.teacher, batch).positions
    for result, wanted in ((measured.m, kl(log_p, log_c)), (measured.f, kl(log_q, log_p)), (measured.d, kl(log_q, log_c))):
        torch.testing.assert_close(result.double(), wanted, rtol=1e-3, atol=1e-5)
    out = model(batch, alpha=0.5)
    nll = -log_c.gather(1, batch.targets_N[:, None]).mean()
    assert float(out.d.detach()) == pytest.approx(float(kl(log_q, log_c).mean()), rel=1e-4)
    assert float(out.nll.detach()) == pytest.approx(float(nll), rel=1e-4)
    # evaluation, as student and as teacher, and what `embed` leaves as the teacher's NLL
    for teacher, llm in ((False, model.llm), (True, original)):
        ((score, _),) = loglikelihoods(model, [["What does the otter eat?"]], [[" Fish."]], teacher=teacher)[0]
        whole, ids = (
            [model.prefix, *ids_of(model, text)] for text in ("What does the otter eat? Fish.", "What does the otter eat?")
        )
        logp = llm(input_ids=torch.tensor([whole]), use_cache=False).logits[0].float().log_softmax(-1)
        assert score == pytest.approx(sum(float(logp[n - 1, whole[n]].detach()) for n in range(len(ids), len(whole))), abs=1e-3)
    ids = torch.tensor([ids_of(model, TEXTS[0])])
    logp = original(input_ids=ids, use_cache=False).logits[0, :, :vocab].float().log_softmax(-1)
    measured = of_llm(original, model.tokenizer)([TEXTS[0]]).nll[0]
    assert measured == pytest.approx(float(-logp[:-1].gather(1, ids[0, 1:, None]).mean()), rel=1e-4)
    # the tokens of an answer come from the same logits
    first = next(iter(model.stream(["Who bakes"], max_new_tokens=1, teacher=True))).logp
    whole = torch.tensor([[model.prefix, *ids_of(model, "Who bakes")]])
    wanted = original(input_ids=whole, use_cache=False).logits[0, -1, :vocab].float().log_softmax(-1)
    torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_form_of_a_head_is_found_exactly_and_kept_in_a_checkpoint(place, tmp_path, kind):
    model = built(place, kind)
    form, out = form_of(model.llm), head_of(model.llm)
    assert form.scale == pytest.approx(SCALED.get(kind, 1.0), rel=1e-12) and form.soft_cap == (2.5 if kind in BENT else None)
    assert (out.bias is not None) == (kind in BIASED)
    model.save_pretrained(tmp_path / "alone")
    again = SpeechLM.from_pretrained(tmp_path / "alone").eval()
    batch = batch_of(model)
    with torch.no_grad():
        assert torch.equal(again(batch).loss, model(batch).loss)


@pytest.mark.parametrize("kind", ["phi", "gemma2", "cohere", "bert"])
def test_trained_in_full_the_gradient_of_a_head_is_autograds(place, kind):
    model = built(place, kind, finetune="full")
    batch = batch_of(model)
    results = []
    for plain in (False, True):
        model.zero_grad(set_to_none=True)
        if plain:
            teacher = load_llm(LLMConfig(name=f"models/{kind}"), place)
            with torch.no_grad():
                log_q = teacher(input_ids=batch.text_ids_BS, use_cache=False).logits.flatten(0, 1)[batch.text_rows_N]
            log_p = model.llm(inputs_embeds=model.embed(batch), use_cache=False).logits.flatten(0, 1)[batch.rows_N]
            log_q, log_p = (x[:, : model.vocab_size].log_softmax(-1) for x in (log_q, log_p))
            loss = 0.5 * (log_q.exp() * (log_q - log_p)).sum(-1).mean() + 0.5 * F.nll_loss(log_p, batch.targets_N)
        else:
            loss = model(batch, alpha=0.5).loss
        loss.backward()
        results.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    if kind in BIASED:
        assert any("bias" in name and grad.shape[0] > 300 and grad.abs().sum() > 0 for name, grad in results[0].items())
    largest = float(max(grad.abs().max() for grad in results[1].values()))
    for name, grad in results[1].items():
        torch.testing.assert_close(results[0][name], grad, rtol=2e-3, atol=2e-5 * largest)


@pytest.mark.parametrize("how", [{}, {"chunk_rows": 3}, {"vocab_tile": 7}, {"divergence": "reverse_kl"}, {"divergence": "jsd"}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("scale", "cap", "biased"), [(0.3, None, True), (1.0, 4.0, False), (2.0, 3.0, True), (1.0, None, True)])
def test_the_objective_on_any_head_is_that_of_plain_logits(how, dtype, scale, cap, biased):
    rng = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)  # noqa: E731
    h, w, b, th, tw, tb = draw(9, 6), draw(20, 6), draw(20), draw(9, 5), draw(20, 5), draw(20)
    targets = torch.tensor([3, 0, -1, 7, 16, 5, -1, 2, 1])
    kept, vocab = targets >= 0, 17
    student, teacher = Head(w, b if biased else None, scale, cap), Head(tw, tb, 0.5, 6.0)
    results, wanted = [], []
    for inputs, plain in ((results, False), (wanted, True)):
        leaves = [x.detach().double().requires_grad_() if plain else x.detach().clone().requires_grad_() for x in (h, w, b)]
        item = student._replace(weight=leaves[1], bias=leaves[2] if biased else None)
        if plain:
            raw = scale * leaves[0] @ leaves[1].T + (leaves[2] if biased else 0)
            log_p = (raw if cap is None else cap * torch.tanh(raw / cap))[:, :vocab].log_softmax(-1)[kept]
            raw = 0.5 * th.double() @ tw.double().T + tb.double()
            log_q = (6 * torch.tanh(raw / 6))[:, :vocab].log_softmax(-1)[kept]
            log_m = torch.logaddexp(log_p, log_q) - math.log(2)
            d = {
                "reverse_kl": (log_p.exp() * (log_p - log_q)).sum(-1),
                "jsd": ((log_p.exp() * (log_p - log_m)).sum(-1) + (log_q.exp() * (log_q - log_m)).sum(-1)) / 2,
                None: (log_q.exp() * (log_q - log_p)).sum(-1),
            }[how.get("divergence")]
            loss = (0.3 * d - 0.7 * log_p.gather(1, targets[kept][:, None])[:, 0]).mean()
        else:
            loss = distillation_loss(leaves[0], item, th, teacher, targets, 0.3, vocab, **how).loss
        loss.backward()
        inputs += [loss.detach(), *(x.grad for x in leaves if x.grad is not None)]
    assert len(results) == len(wanted) == (4 if biased else 3)
    limit = 1e-9 if dtype == torch.float64 else 3e-2
    for own, reference in zip(results, wanted, strict=True):
        torch.testing.assert_close(own.double(), reference, rtol=limit, atol=limit * float(reference.abs().max()))


def test_equal_bent_heads_diverge_by_exactly_nothing():
    h, head = torch.randn(5, 8), Head(torch.randn(30, 8), torch.randn(30), 0.7, 2.0)
    measured = position_divergences((h, head), (h, head), (h, head))
    assert (measured.m == 0).all() and (measured.f == 0).all() and (measured.d == 0).all()


def test_a_teacher_cache_knows_scale_and_bias_and_refuses_a_soft_cap():
    torch.manual_seed(0)
    h, t, targets = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8), torch.arange(6)
    head = Head(torch.randn(40, 8), torch.randn(40), 0.4)
    results = []
    for loss in (
        cached_distillation_loss(h, head, cache_rows(t, head), targets, 0.5),
        distillation_loss(h, head, t, head, targets, 0.5),
    ):
        (gradient,) = torch.autograd.grad(loss.loss, h)
        results.append((float(loss.d.detach()), float(loss.nll.detach()), gradient))
    assert results[0][:2] == pytest.approx(results[1][:2], rel=2e-3)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-2, atol=1e-3)
    with pytest.raises(SaladError, match="soft cap"):
        cache_rows(t, head._replace(soft_cap=5.0))
    ObjectiveConfig(teacher_cache=True)


def test_a_head_that_is_not_understood_is_refused_where_it_is_loaded(place, tmp_path):
    """Dory multiplies each token's logit by a number of its own; RoBERTa's head is several functions in a row."""
    for kind, why in (("dory", "DoryLMHead is no matrix with a bias"), ("roberta", "")):
        FAMILIES[kind] = {"is_decoder": True} if kind == "roberta" else {}
        try:
            make(tmp_path / kind, kind)
        except ValueError:  # an architecture that this version of transformers does not have
            continue
        finally:
            del FAMILIES[kind]
        with pytest.raises(SaladError, match=f"{kind}.*cannot be used: how it makes logits.*{why}") as error:
            load_llm(LLMConfig(name=str(tmp_path / kind)), None)
        assert "\n" not in str(error.value)


def test_a_name_that_means_the_opposite_elsewhere_is_measured_not_read():
    """Granite divides by logits_scaling, HyperCLOVA X multiplies by it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    for kind, factor in (("granite", 1 / 0.3), ("hyperclovax", 0.3)):
        try:
            made = AutoConfig.for_model(kind, vocab_size=64, logits_scaling=0.3, **SIZES)
        except ValueError:
            continue
        llm = AutoModelForCausalLM.from_config(made).eval()
        assert form_of(llm).scale == pytest.approx(factor, rel=1e-12)
        ids = torch.arange(20)[None]
        with torch.no_grad():
            own = llm(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(head_of(llm).logits(hidden_of(llm, input_ids=ids)), own, rtol=1e-6, atol=1e-7)


def test_lora_on_the_output_head_trains_and_the_teacher_stays_the_original(place, tmp_path):
    llm = LLMConfig(name="models/phi", lora_rank=4, lora_targets=("q_proj", "lm_head"))
    model = SpeechLM.build(config(llm=llm), place).eval()
    batch = batch_of(model)
    original = load_llm(LLMConfig(name="models/phi"), place)
    model(batch, alpha=0.5).loss.backward()
    trained = {n: p.grad for n, p in model.llm.named_parameters() if "lm_head" in n and p.requires_grad}
    assert len(trained) == 2 and trained[next(n for n in trained if "lora_B" in n)].abs().max() > 0
    with torch.no_grad():
        for name, parameter in model.llm.named_parameters():
            if "lm_head.lora_B" in name:
                parameter.normal_(0, 0.2)
        own = model.llm(inputs_embeds=model.embed(batch), use_cache=False).logits.flatten(0, 1)[batch.rows_N]
        ours_ = model.output_head.logits(model.hidden(batch).flatten(0, 1)[batch.rows_N])
        teacher = model.teacher.output_head.logits(model.teacher.hidden(batch.text_ids_BS))
    torch.testing.assert_close(ours_, own, rtol=1e-4, atol=1e-4)
    assert torch.equal(teacher, original(input_ids=batch.text_ids_BS, use_cache=False).logits)
    for save, lab in ((model.save_trained, place), (model.save_pretrained, None)):
        save(tmp_path / save.__name__)
        again = SpeechLM.from_pretrained(tmp_path / save.__name__, lab).eval()
        with torch.no_grad():
            assert torch.equal(again(batch).loss, model(batch).loss)
    with pytest.raises(SaladError, match="output head .lm_head., whose LoRA has no dropout"):
        SpeechLM.build(config(llm=LLMConfig(name="models/phi", lora_targets=("lm_head",), lora_dropout=0.1)), place)


# --- which layers LoRA adapts ---


def adapted(llm) -> set[str]:
    return {name.split(".lora_")[0].rpartition(".")[2] for name, _ in llm.named_parameters() if "lora_" in name}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("gpt_neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("qwen2", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_lora_finds_an_architectures_own_layers_and_says_which(tmp_path, kind, wanted):
    from salad.models.lora import describe

    FAMILIES[kind] = {}
    try:
        make(tmp_path / "models" / kind, kind)
    finally:
        del FAMILIES[kind]
    encoder(tmp_path / "models" / "encoder")
    model = SpeechLM.build(config(llm=LLMConfig(name=f"models/{kind}", lora_rank=4)), tmp_path)
    assert adapted(model.llm) == wanted
    trains = sum(p.numel() for p in model.llm.parameters() if p.requires_grad)
    assert f"{trains:,} of" in describe(model.llm) and all(name in describe(model.llm) for name in wanted)
    by_table = (
        SpeechLM.build(config(llm=LLMConfig(name=f"models/{kind}", lora_rank=4, lora_targets="peft")), tmp_path)
        if kind != "phi3"
        else None
    )
    assert by_table is None or adapted(by_table.llm) < wanted
    with pytest.raises(SaladError, match="has no w1, w2; its linear layers are called .*all-linear"):
        SpeechLM.build(config(llm=LLMConfig(name=f"models/{kind}", lora_targets=("w1", "w2"))), tmp_path)
    if kind == "phi3":
        with pytest.raises(SaladError, match="peft's table has nothing for 'phi3'.*all-linear"):
            SpeechLM.build(config(llm=LLMConfig(name="models/phi3", lora_targets="peft")), tmp_path)


def test_names_that_only_few_layers_have_are_refused(tmp_path):
    FAMILIES["qwen2"] = {"num_hidden_layers": 5}
    try:
        make(tmp_path / "models" / "deep", "qwen2")
    finally:
        del FAMILIES["qwen2"]
    encoder(tmp_path / "models" / "encoder")
    few = ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj")
    with pytest.raises(SaladError, match="are in 2 of the 5 layers of 'models/deep'"):
        SpeechLM.build(config(llm=LLMConfig(name="models/deep", lora_targets=few)), tmp_path)
    model = SpeechLM.build(config(llm=LLMConfig(name="models/deep", lora_targets="all-linear")), tmp_path)
    assert len(adapted(model.llm)) == 7
