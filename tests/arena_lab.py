"""A lab that the A/B app can open: random tiny models behind the real classes, finished runs, items with speech."""

import json
from pathlib import Path

import torch
from tiny import config, lab

import store
from salad.evaluation import tasks
from salad.evaluation.spoken import context_sample
from salad.models.speech_lm import SpeechLM
from salad.passes.synthesise import jobs_of, synthesise
from salad.runs import RunFolder
from salad.speech import load_tts
from salad.speech.check import load_recogniser
from salad.training import checkpoints

ITEMS = (
    ("What does the otter eat?", ("Fish.", "Bark.")),
    ("What is the capital of France?", ("Rome.", "Paris.")),
    ("Where does Anna live?", ("By the sea.", "In St. Louis.")),
)
FREE = {"sentence": False, "stop": [], "max_new_tokens": 12}  # how stage2_active answers: a fixed number of tokens


def recogniser(folder: Path) -> None:
    from salad.miniature.recogniser import VOCABULARY, processor
    from salad.models.phone import PhoneConfig, PhoneForCTC

    torch.manual_seed(3)
    sizes = PhoneConfig(width=16, n_phones=8, vocab_size=len(VOCABULARY), pad_token_id=0, head_width=16, head_layers=1)
    PhoneForCTC(sizes).save_pretrained(folder)
    processor(sizes).save_pretrained(folder)


def trained(place: Path, name: str, kind: str, steps: tuple[int, ...], seed: int, **settings) -> RunFolder:
    """A finished run whose checkpoints hold random LoRA weights, so that they differ from the teacher."""
    changed = config(kind=kind, contender=name, seed=seed, parent="stage1" if kind == "stage2" else None)
    run = RunFolder.get_or_create(place, kind, f"tiny_{kind}", changed.model_dump(mode="json"))
    model = SpeechLM.build(changed, place)
    model.settings |= settings
    torch.manual_seed(seed)
    for key, weight in model.llm.named_parameters():
        if "lora_B" in key:
            weight.data = torch.randn_like(weight) * 0.2
    optimizer = torch.optim.AdamW(model.adapter.parameters())
    for step in steps:
        checkpoints.save(run.path, step, model, optimizer, {})
    run.status(state="done", step=steps[-1], ended_at=f"2026-01-0{seed}T00:00:00+00:00")
    return run


def make(folder: Path) -> Path:
    """The lab: contenders teacher, stage1 (steps 4 and 8) and stage2_active (step 9), task `tiny`."""
    lab(folder)
    recogniser(folder / "models" / "recogniser")
    RunFolder.get_or_create(folder, "teacher", "tiny_teacher", {"seed": 0}).status(
        state="done", step=5, ended_at="2026-01-01T00:00:00+00:00"
    )
    trained(folder, "stage1", "stage1", (4, 8), 2)
    trained(folder, "stage2_active", "stage2", (9,), 3, answering=FREE)
    (folder / "tasks").mkdir()
    with open(folder / "tasks" / "tiny.jsonl", "w") as file:
        for number, (context, choices) in enumerate(ITEMS):
            row = {"item_id": f"tiny-{number}", "domain": "tiny", "context": context, "choices": choices, "answer": 0}
            file.write(json.dumps(row) + "\n")
    contexts = [context_sample(item) for item in tasks.load(folder, "tiny")]
    store.publish(folder, "samples", [
        {"sample_id": s, "text": text, "spoken": text, "corpus": corpus, "domain": "tiny", "n_tokens": 8, "flags": []}
        for s, text, corpus in contexts
    ], {"corpus": "tiny"})  # fmt: skip
    jobs = jobs_of([result[:2] for result in contexts], ("en-us@rate=195",))
    synthesise(folder, "items", jobs, load_tts("espeak"), {"items": 0}, load_recogniser(str(folder / "models" / "recogniser")))
    return folder
