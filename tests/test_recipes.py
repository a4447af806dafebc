"""Every recipe at its real size, on the meta device: parameter counts of METHOD.md and one shape-only step."""

import pytest
import torch
from pydantic import Field
from tiny import encoder, teacher
from torch._subclasses.fake_tensor import FakeTensorMode

from salad import SaladError, recipes
from salad.config import LATER, Frozen, RunConfig, apply_overrides
from salad.data.batches import collate
from salad.data.interleaving import Span, interleaved_sequence
from salad.models import meta
from store.ids import run_id

# published numbers of parameters, embeddings counted once where they are tied
LLMS = {
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A lab with what the miniature's recipes name; the others need none."""
    folder = tmp_path_factory.mktemp("lab")
    teacher(folder / "models" / "teacher")
    encoder(folder / "models" / "encoder")
    return folder


def count(module, trains=None) -> int:
    return sum(p.numel() for p in module.parameters() if trains is None or p.requires_grad == trains)


def lora_parameters(model, config) -> int:
    """Two matrices of rank r beside every projection: r (in + out) each."""
    c = model.llm.config
    queries, keys = c.hidden_size, c.hidden_size // c.num_attention_heads * c.num_key_value_heads
    attention = 2 * (c.hidden_size + queries) + 2 * (c.hidden_size + keys)
    return c.num_hidden_layers * config.llm.lora_rank * (attention + 3 * (c.hidden_size + c.intermediate_size))


def shorten(model) -> None:
    """Two layers of each stack: the others have the same shapes, and cost a second each."""
    for part in (model.llm.get_decoder(), model.adapter.transformer, model._beside["original"]):
        if part is not None:
            del getattr(part, "model", part).layers[2:]


def shapes_of_a_batch(model, size=2, tokens=24, frames=20):
    """A batch of `size` sequences on the meta device: text, a span of frames, text."""
    spans = [Span(False, 0, 8, 0, 0), Span(True, 8, 16, 0, frames), Span(False, 16, tokens, 0, 0)]
    laid = [interleaved_sequence(model.prefix, list(range(5, 5 + tokens)), spans) for _ in range(size)]
    sound = torch.zeros(frames, model.encoder.dim).numpy()
    return collate(laid, [sound] * size, ["s"] * size).to("meta")


@pytest.mark.parametrize("name", LLMS)
def test_the_committed_sizes_give_the_published_parameter_counts(name):
    from transformers import AutoModelForCausalLM

    config, _ = meta.sizes(name)
    with torch.device("meta"):
        assert count(AutoModelForCausalLM.from_config(config)) == LLMS[name]


@pytest.mark.parametrize(("recipe", "millions"), [("qwen2_5_3b_stage1", 120.4), ("qwen2_5_7b_stage1", 121.9)])
def test_the_papers_adapter_has_the_papers_size(recipe, millions):
    adapter = meta.speech_lm(recipes.get(recipe)).adapter
    assert round(count(adapter) / 1e6, 1) == millions
    assert not any(name.endswith("bias") for name, _ in adapter.named_parameters())


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("recipe", recipes.names())
def test_a_recipe_builds_and_takes_one_step_of_the_right_shapes(recipe, place):
    config = recipes.get(recipe)
    model = meta.speech_lm(config, place)
    assert all(p.is_meta for p in model.parameters())
    assert count(model.encoder, trains=True) == 0 and count(model.adapter, trains=False) == 0
    if config.llm.finetune == "lora":
        assert model._beside["original"] is None and count(model.llm, trains=True) == lora_parameters(model, config)
    else:
        assert count(model.llm, trains=False) == 0 and count(model._beside["original"], trains=True) == 0
    shorten(model)
    batch = shapes_of_a_batch(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with FakeTensorMode(allow_non_fake_inputs=True):  # transformers looks at values, except of fake tensors
        out = model(batch, alpha=config.objective.alpha)
        assert out.loss.shape == () and out.loss.dtype == torch.float32 and out.loss.device.type == "meta"
        gradients = torch.autograd.grad(out.loss, list(trained.values()))
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        assert (gradient.shape, gradient.dtype) == (parameter.shape, parameter.dtype), name


@pytest.mark.parametrize("recipe", recipes.names())
def test_a_recipe_is_data_that_loads_again(recipe):
    config = recipes.get(recipe)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert config.kind in recipe


def test_every_figure_of_the_paper_stands_in_its_recipes():
    for size in ("3b", "7b"):
        first, second = recipes.get(f"qwen2_5_{size}_stage1"), recipes.get(f"qwen2_5_{size}_stage2")
        for config in (first, second):
            adapter, optim = config.adapter, config.optim
            assert (adapter.layers, adapter.width, adapter.mlp, adapter.heads, adapter.kv_heads) == (12, 960, 2560, 15, 5)
            assert config.encoder.name == "kyutai/mimi" and config.llm.finetune == "full"
            assert optim.weight_decay == 0.1 and config.objective.alpha == 1.0
            assert optim.lr_adapter > optim.lr_llm and config.data.p_text == pytest.approx(1 / 3)
        assert (first.optim.lr_adapter, first.optim.lr_llm) == (1e-3, 5e-5)
        assert (second.optim.lr_adapter, second.optim.lr_llm) == (1e-4, 5e-6)
        assert second.optim.decay == second.optim.steps and second.parent == "stage1"


def test_a_model_whose_sizes_nobody_knows_is_refused():
    config = apply_overrides(recipes.get("qwen2_5_3b_stage1"), {"llm.name": "nobody/nothing"})
    with pytest.raises(SaladError, match="sizes of 'nobody/nothing' are not at hand"):
        meta.speech_lm(config)
    chat = {"llm.name": "Qwen/Qwen2.5-3B-Instruct", "sequences.prompt": "chat", "sequences.system": "Be brief."}
    tuned = meta.speech_lm(apply_overrides(recipes.get("qwen2_5_3b_stage1"), chat))
    assert count(tuned.llm) == LLMS["Qwen/Qwen2.5-3B"]
    config = apply_overrides(recipes.get("qwen2_5_3b_stage1"), {"encoder.name": "nobody/ears"})
    with pytest.raises(SaladError, match="encoder 'nobody/ears'"):
        meta.speech_lm(config)


def test_settings_that_joined_later_leave_ids_of_landed_labs_as_they_were():
    """Ids of the miniature's runs as commit 4f4aa4b made them: the same command on a lab from then resumes its runs."""
    ids = {name: run_id(recipes.get(name).model_dump(mode="json")) for name in ("miniature_stage1", "miniature_stage2")}
    assert ids == {"miniature_stage1": "rd1a6d804e223", "miniature_stage2": "rbf796201655e"}


def test_a_setting_that_joined_later_is_stored_only_where_it_is_not_the_default():
    class Part(Frozen):
        old: int = 1
        new: int = Field(2, json_schema_extra=LATER)

    class Whole(Frozen):
        part: Part = Part()
        names: tuple[str, ...] = Field((), json_schema_extra=LATER)

    assert Whole().model_dump(mode="json") == {"part": {"old": 1}}
    assert Whole().model_dump() == {"part": {"old": 1, "new": 2}, "names": ()}  # what --set may name
    changed = apply_overrides(Whole(), {"part.new": 3, "names": ["a"]})
    assert changed.model_dump(mode="json") == {"part": {"old": 1, "new": 3}, "names": ["a"]}
    assert Whole.model_validate(changed.model_dump(mode="json")) == changed


def test_rates_are_those_of_their_kind():
    """The adapter's are above the LLM's, LoRA's above full fine-tuning's, and Stage II's no higher than Stage I's."""
    for name in recipes.names():
        optim = recipes.get(name).optim
        assert optim.lr_adapter >= optim.lr_llm, name
        if name.endswith("_stage2"):
            first = recipes.get(name.replace("_stage2", "_stage1")).optim
            assert optim.lr_llm <= first.lr_llm and optim.lr_adapter <= first.lr_adapter, name
        if "_lora_" in name:
            assert optim.lr_llm > recipes.get(name.replace("_lora", "")).optim.lr_llm, name
