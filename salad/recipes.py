"""Recipes: plain functions that return a whole configuration, taken by name by `launch_gpu.py`.

Figures of the Qwen2.5 recipes are METHOD.md's (arXiv 2510.13632); those marked [2] there come from digests of
the paper.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from salad.study.config import MiniatureStudy


def miniature_stage1() -> RunConfig:
    """Stage I of the embedded default: 600 short recordings of one domain, minutes on one CPU core."""
    return RunConfig(
        kind="stage1",
        contender="stage1",
        adapter=AdapterConfig(layers=2, width=128, mlp=384, heads=4, kv_heads=4, match_embedding_rms=True),
        optim=OptimConfig(
            steps=600, batch=8, lr_adapter=2e-3, lr_llm=2e-3, weight_decay=0.0, warmup=30, decay=120, checkpoint_every=240
        ),
        threads=1,
    )


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
    """Stage II of SmolLM2-360M, after `smollm2_360m_stage1`."""
    return _small("HuggingFaceTB/SmolLM2-360M", 2)


def qwen2_5_0_5b_stage1() -> RunConfig:
    """Qwen2.5-0.5B on LibriSpeech with LoRA: a first real run on one 24 GB GPU."""
    return _small("Qwen/Qwen2.5-0.5B", 1)


def qwen2_5_0_5b_stage2() -> RunConfig:
    """Stage II of Qwen2.5-0.5B, after `qwen2_5_0_5b_stage1`."""
    return _small("Qwen/Qwen2.5-0.5B", 2)


def qwen2_5_3b_stage1() -> RunConfig:
    """SALAD-3B as published: every LLM weight trains."""
    return _qwen("Qwen/Qwen2.5-3B", 1)


def qwen2_5_3b_stage2() -> RunConfig:
    """Stage II of Qwen2.5-3B, after `qwen2_5_3b_stage1`."""
    return _qwen("Qwen/Qwen2.5-3B", 2)


def qwen2_5_3b_lora_stage1() -> RunConfig:
    """SALAD-3B with LoRA: teacher and student share one set of weights, for one large GPU."""
    return _qwen("Qwen/Qwen2.5-3B", 1, lora=True)


def qwen2_5_3b_lora_stage2() -> RunConfig:
    """Stage II of Qwen2.5-3B with LoRA, after `qwen2_5_3b_lora_stage1`."""
    return _qwen("Qwen/Qwen2.5-3B", 2, lora=True)


def qwen2_5_7b_stage1() -> RunConfig:
    """SALAD-7B as published."""
    return _qwen("Qwen/Qwen2.5-7B", 1)


def qwen2_5_7b_stage2() -> RunConfig:
    """Stage II of Qwen2.5-7B, after `qwen2_5_7b_stage1`."""
    return _qwen("Qwen/Qwen2.5-7B", 2)


def smollm2_135m_chat_stage1() -> RunConfig:
    """`smollm2_135m_stage1` in the LLM's own chat template: the user's turn may be speech and the answer carries the loss, so
    that it answers a spoken question and stops. The corpora need answers (`salad prepare --answer`)."""
    stage1 = smollm2_135m_stage1()
    return stage1.model_copy(update={"sequences": stage1.sequences.model_copy(update={"prompt": "chat"})})


def miniature() -> MiniatureStudy:
    """The study in miniature: what `salad demo` runs. Minutes on two cores, nothing to download. Returns a MiniatureStudy."""
    from salad.study.config import MiniatureStudy, ScoringConfig

    scoring = ScoringConfig(span_units=(1, 4))  # as its published figures and landed labs are
    return MiniatureStudy(stage1=miniature_stage1(), stage2=miniature_stage2(), scoring=scoring)


def first_cpu():
    """A real LLM learns to hear on two CPU cores: SmolLM2-135M through Whisper tiny.en, natural speech of one LJSpeech reader,
    17 genres of MASC and presidential speeches as texts, Piper and Kokoro as voices. Returns a Study."""
    from salad.study.config import SpeechSource, Study, TaskSource, TextSource

    ljspeech = SpeechSource(
        path="ljspeech/list.tsv",
        layout="table",
        licence="public domain",
        domain="non-fiction",
        hours=0.7,
        rows=(0.0, 0.85),
        get="clips LJ001 and LJ002 of https://keithito.com/LJ-Speech-Dataset with a table of path, text, speaker",
        gb=2.6,
    )
    broad = TextSource(
        path="texts/broad.jsonl",
        licence="free",
        documents=(0.0, 0.85),
        max_domain_share=0.2,
        max_s=20.0,
        megabytes=2.0,
        get="MASC and presidential speeches (nltk_data) as JSONL of doc_id, text, domain, source, licence",
        gb=0.01,
    )
    return Study(
        name="first_cpu",
        text=broad,
        heldout_text=broad.model_copy(update={"documents": (0.85, 1.0), "max_domain_share": 1.0, "megabytes": 0.6}),
        heldout_per_domain=20,
        natural=ljspeech,
        heldout=ljspeech.model_copy(update={"rows": (0.85, 1.0)}),
        tasks=(
            TaskSource(name="piqa", path="piqa/valid_600.jsonl", format="piqa", rows=(0.5, 1.0), licence="AFL-3.0",
                       get="PIQA's validation set: https://yonatanbisk.com/piqa"),
            TaskSource(name="arc_challenge", path="arc/test_600.jsonl", format="arc", limit=300, licence="CC BY-SA 4.0",
                       get="ARC-Challenge's test set: https://allenai.org/data/arc"),
        ),
        tts="piper:piper-en_US-joe-medium",
        voices=("en_US-joe-medium",),
        probe_voices=("en_US-joe-medium",),
        eval_tts="kokoro-onnx:kokoro-onnx",
        eval_voices=("jf_alpha", "jm_kumo"),
        recogniser="openai/whisper-tiny.en",
        embeddings="sentence-transformers/all-MiniLM-L6-v2",
        n_clusters=64,
        probe_per_cluster=6,
        gamma=2.0,
        budget_h=0.5,
        stage1=smollm2_135m_stage1(),
        stage2=smollm2_135m_stage2(),
    )  # fmt: skip


def _librispeech(name: str, stage1: RunConfig, stage2: RunConfig, **fields):
    """A study of LibriSpeech, FineWeb-Edu and four public benchmarks, with Kokoro's voices and the paper's sentence embedder."""
    from salad.study.config import SpeechSource, Study, TaskSource, TextSource

    data = DataConfig(natural=("natural",), text=("broad",))
    stage1, stage2 = (
        run.model_copy(update={"data": run.data if "natural" in run.data.natural else data}) for run in (stage1, stage2)
    )
    openslr = "https://www.openslr.org/12: unpack train-clean-100, train-clean-360 and train-other-500 into librispeech/train"
    sources = {
        "text": TextSource(
            path="fineweb/000_00000.parquet", licence="odc-by", workers=8, megabytes=150.0,
            get="hf download HuggingFaceFW/fineweb-edu --repo-type dataset --include sample/10BT/000_00000.parquet", gb=2.2),
        "natural": SpeechSource(path="librispeech/train", layout="librispeech", licence="CC BY 4.0", domain="audiobooks",
                                hours=960.0, get=openslr, gb=57.0),
        "heldout": SpeechSource(path="librispeech/dev-clean", layout="librispeech", licence="CC BY 4.0", domain="audiobooks",
                                hours=5.4, get="https://www.openslr.org/resources/12/dev-clean.tar.gz", gb=0.34),
    }  # fmt: skip
    return Study(
        name=name,
        **{
            **sources,
            "tasks": tuple(TaskSource(name=task) for task in ("piqa", "openbookqa", "arc_challenge", "hellaswag")),
            "tts": "kokoro",
            "voices": ("af_heart", "am_michael"),
            "probe_voices": ("af_heart",),
            "recogniser": "facebook/wav2vec2-base-960h",
            "embeddings": "BAAI/bge-large-en-v1.5",
            "n_clusters": 128,
            "probe_per_cluster": 6,
            "gamma": 5.0,
            "budget_h": 9.6,
            "stage1": stage1,
            "stage2": stage2,
        }
        | fields,
    )


def first_gpu():
    """A first study on one 24 GB GPU, about a day: Qwen2.5-0.5B with LoRA on LibriSpeech. Returns a Study."""
    return _librispeech("first_gpu", qwen2_5_0_5b_stage1(), qwen2_5_0_5b_stage2())


def _published(name: str, stage1: RunConfig, stage2: RunConfig):
    """LibriHeavy and Emilia as natural speech, as the paper's 3B and 7B: eight large GPUs."""
    from salad.study.config import SpeechSource, TextSource

    natural = SpeechSource(
        path="libriheavy",
        layout="cuts",
        domain="audiobooks",
        hours=50_000.0,
        gb=3000.0,
        licence="public domain",
        get="https://github.com/k2-fsa/libriheavy and Libri-Light's audio",
    )
    text = TextSource(
        path="fineweb",
        licence="odc-by",
        workers=16,
        megabytes=28_000.0,
        gb=28.0,
        get="hf download HuggingFaceFW/fineweb-edu --repo-type dataset --include 'sample/10BT/*'",
    )
    more = SpeechSource(
        path="emilia",
        layout="emilia",
        licence="CC BY-NC 4.0",
        domain="conversation",
        hours=91_000.0,
        gb=2200.0,
        get="hf download amphion/Emilia-Dataset --repo-type dataset --include 'EN/*'",
    )
    stages = [
        run.model_copy(update={"data": run.data.model_copy(update={"natural": ("natural", "natural_2"), "text": ("broad",)})})
        for run in (stage1, stage2)
    ]
    return _librispeech(name, *stages, natural=natural, further_natural=(more,), text=text, budget_h=1_400.0, gpus=8)


def salad_3b():
    """SALAD-3B as published: Qwen2.5-3B in full on LibriHeavy and Emilia, 1 % of their hours selected. Returns a Study."""
    return _published("salad_3b", qwen2_5_3b_stage1(), qwen2_5_3b_stage2())


def salad_7b():
    """SALAD-7B as published. Returns a Study."""
    return _published("salad_7b", qwen2_5_7b_stage1(), qwen2_5_7b_stage2())


RUNS = {
    recipe.__name__: recipe
    for recipe in (
        miniature_stage1, miniature_stage2, smollm2_135m_stage1, smollm2_135m_stage2, smollm2_135m_chat_stage1,
        smollm2_360m_stage1, smollm2_360m_stage2,
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


STUDIES = {recipe.__name__: recipe for recipe in (miniature, first_cpu, first_gpu, salad_3b, salad_7b)}


def study(name: str):
    """The study's configuration by name (a MiniatureStudy or a Study); an unknown name is a SaladError that suggests one."""
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(STUDIES)}, or a .toml, .json or .py file"
        raise SaladError(f"no study {name!r}; {hint}")
    return STUDIES[name]()
