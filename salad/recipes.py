"""Recipes: plain functions that return a whole configuration, taken by name by `launch_gpu.py`.

Figures of the Qwen2.5 recipes are METHOD.md's (arXiv 2510.13632); those marked [2] there come from digests of
the paper.
"""

import difflib

from salad.config import (
    AdapterConfig,
    DataConfig,
    EncoderConfig,
    LLMConfig,
    OptimConfig,
    RunConfig,
    SequenceConfig,
    WarmStartConfig,
)
from salad.errors import SaladError


def miniature_stage1() -> RunConfig:
    """Stage I of the embedded default: 600 short recordings of one domain, minutes on one CPU core."""
    return RunConfig(
        kind="stage1",
        contender="stage1",
        adapter=AdapterConfig(layers=2, width=128, mlp=384, heads=4, kv_heads=4, match_embedding_rms=True),
        optim=OptimConfig(steps=600, batch=8, lr_adapter=2e-3, lr_llm=2e-3, weight_decay=0.0, warmup=30,
                          decay=120, checkpoint_every=240),
        threads=1,
    )  # fmt: skip


def miniature_stage2() -> RunConfig:
    """Stage II of the embedded default: natural and selected speech together, at last decaying linearly to 0."""
    stage1 = miniature_stage1()
    return stage1.model_copy(
        update={
            "kind": "stage2",
            "contender": "stage2",
            "parent": "stage1",
            "data": stage1.data.model_copy(update={"p_text": 0.08, "p_selected": 0.85}),
            "sequences": stage1.sequences.model_copy(update={"p_speech_first": 0.2}),
            "optim": stage1.optim.model_copy(update={"steps": 1500, "warmup": 30, "decay": 1100}),
        }
    )


FULL, LORA = 5e-5, 4e-4  # Stage I's learning rate of an LLM that is trained in full [2], and of LoRA, which needs more


def _qwen(name: str, stage: int, lora: bool = False) -> RunConfig:
    """Mimi, the paper's adapter, 1 M tokens a batch; Stage I 24 B tokens, Stage II 1.9 B, at a tenth of Stage I's rates."""
    steps = 24_000 if stage == 1 else 1_900
    return RunConfig(
        kind=f"stage{stage}",
        contender=f"stage{stage}",
        parent=None if stage == 1 else "stage1",
        llm=LLMConfig(name=name, finetune="lora" if lora else "full", lora_rank=64, lora_alpha=128.0,
                      dtype="bfloat16"),
        encoder=EncoderConfig(name="kyutai/mimi"),
        adapter=AdapterConfig(),
        sequences=SequenceConfig(shots=5, span_units=(5, 25)),
        data=DataConfig(natural=("libriheavy", "emilia"), text=("fineweb_edu",)),
        optim=OptimConfig(steps=steps, batch_tokens=1_000_000, micro_tokens=16_384, gradient_checkpointing=True,
                          lr_adapter=1e-3 if stage == 1 else 1e-4,
                          lr_llm=(LORA if lora else FULL) / (1 if stage == 1 else 10), weight_decay=0.1,
                          warmup=500 if stage == 1 else 0, decay=2_400 if stage == 1 else steps,
                          checkpoint_every=500),
    )  # fmt: skip


def _small(name: str, stage: int) -> RunConfig:
    """One 24 GB GPU with LoRA: LibriSpeech as natural speech, 10⁵ passages as text; Stage I 300 M tokens."""
    config = _qwen(name, stage, lora=True)
    steps = 6_000 if stage == 1 else 2_000
    decay = 1_000 if stage == 1 else 2_000
    small = {"steps": steps, "decay": decay, "batch_tokens": 50_000, "micro_tokens": 8_192}
    return config.model_copy(
        update={
            "data": DataConfig(natural=("librispeech",), text=("passages",)),
            "optim": config.optim.model_copy(update=small),
        }
    )


def smollm2_135m_stage1() -> RunConfig:
    """SmolLM2-135M-Instruct hears through Whisper tiny.en, on two CPU cores: the adapter is warm-started, then LoRA; 400,000
    tokens and frames. Sizes and rates are those of a trial outside this code; they have not been tuned."""
    return RunConfig(
        kind="stage1",
        contender="stage1",
        llm=LLMConfig(name="HuggingFaceTB/SmolLM2-135M-Instruct", lora_rank=64, lora_alpha=128.0, dtype="bfloat16"),
        encoder=EncoderConfig(name="openai/whisper-tiny.en", window="speech", stack=4),
        adapter=AdapterConfig(layers=4, width=576, mlp=1536, heads=9, kv_heads=3, match_embedding_rms=True,
                              warm_start=WarmStartConfig(steps=600)),
        sequences=SequenceConfig(shots=5, span_units=(3, 15), context=1024),
        data=DataConfig(natural=("natural",), text=("broad",)),
        optim=OptimConfig(steps=200, batch_tokens=2_000, micro_tokens=1_000, lr_adapter=5e-4, lr_llm=2e-4, weight_decay=0.1,
                          warmup=10, decay=40, checkpoint_every=25, log_every=1),
    )  # fmt: skip


def smollm2_135m_stage2() -> RunConfig:
    """Stage II of `smollm2_135m_stage1`: natural and selected speech together, decaying linearly to 0."""
    stage1 = smollm2_135m_stage1()
    return stage1.model_copy(
        update={
            "kind": "stage2",
            "contender": "stage2",
            "parent": "stage1",
            "adapter": stage1.adapter.model_copy(update={"warm_start": WarmStartConfig()}),
            "optim": stage1.optim.model_copy(update={"steps": 100, "warmup": 0, "decay": 100}),
        }
    )


def smollm2_360m_stage1() -> RunConfig:
    """SmolLM2-360M on LibriSpeech with LoRA: a first real run on one 24 GB GPU."""
    return _small("HuggingFaceTB/SmolLM2-360M", 1)


def smollm2_360m_stage2() -> RunConfig:
    return _small("HuggingFaceTB/SmolLM2-360M", 2)


def qwen2_5_0_5b_stage1() -> RunConfig:
    """Qwen2.5-0.5B on LibriSpeech with LoRA: a first real run on one 24 GB GPU."""
    return _small("Qwen/Qwen2.5-0.5B", 1)


def qwen2_5_0_5b_stage2() -> RunConfig:
    return _small("Qwen/Qwen2.5-0.5B", 2)


def qwen2_5_3b_stage1() -> RunConfig:
    """SALAD-3B as published: every LLM weight trains."""
    return _qwen("Qwen/Qwen2.5-3B", 1)


def qwen2_5_3b_stage2() -> RunConfig:
    return _qwen("Qwen/Qwen2.5-3B", 2)


def qwen2_5_3b_lora_stage1() -> RunConfig:
    """SALAD-3B with LoRA: teacher and student share one set of weights, for one large GPU."""
    return _qwen("Qwen/Qwen2.5-3B", 1, lora=True)


def qwen2_5_3b_lora_stage2() -> RunConfig:
    return _qwen("Qwen/Qwen2.5-3B", 2, lora=True)


def qwen2_5_7b_stage1() -> RunConfig:
    """SALAD-7B as published."""
    return _qwen("Qwen/Qwen2.5-7B", 1)


def qwen2_5_7b_stage2() -> RunConfig:
    return _qwen("Qwen/Qwen2.5-7B", 2)


def miniature():
    """The embedded default's whole study: what `salad demo` runs. Returns a StudyConfig."""
    from salad.study.config import ScoringConfig, StudyConfig

    scoring = ScoringConfig(span_units=(1, 4))  # as its published figures and landed labs are
    return StudyConfig(stage1=miniature_stage1(), stage2=miniature_stage2(), scoring=scoring)


RUNS = {
    recipe.__name__: recipe
    for recipe in (
        miniature_stage1, miniature_stage2, smollm2_135m_stage1, smollm2_135m_stage2, smollm2_360m_stage1, smollm2_360m_stage2,
        qwen2_5_0_5b_stage1, qwen2_5_0_5b_stage2, qwen2_5_3b_stage1, qwen2_5_3b_stage2,
        qwen2_5_3b_lora_stage1, qwen2_5_3b_lora_stage2, qwen2_5_7b_stage1, qwen2_5_7b_stage2,
    )
}  # fmt: skip


def names() -> list[str]:
    """Names of the recipes that a run can be started from."""
    return list(RUNS)


def get(name: str) -> RunConfig:
    """The recipe's configuration; an unknown name is a SaladError that suggests the nearest."""
    if name not in RUNS:
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}"
        raise SaladError(f"unknown recipe {name!r}; {hint}")
    return RUNS[name]()
