"""Whatever a damaged file holds, its reader answers with one line that names it, or reads what is whole: never a traceback of
json, NumPy, safetensors, libsndfile, tokenizers or transformers. Without records in a log, so that the decoders see the bytes.

SALAD_FUZZ (0 by default) is how many more damaged forms of each file are tried."""

import io
import json
import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import tiny
from test_store_files import spoken
from tools import mangled

import store
from salad import analysis, lookup, recipes
from salad.config import EncoderConfig, LLMConfig
from salad.data import corpora
from salad.engines import targets
from salad.engines.launch import configuration
from salad.evaluation import tasks
from salad.models.encoders import load_encoder
from salad.models.speech_lm import SpeechLM, load_llm, load_tokenizer
from salad.runs import RunFolder, read_json
from salad.selection import voicing
from salad.speech import shar
from salad.study import graph, notes
from salad.training import checkpoints
from store.errors import UserError

FORMS = 40 + int(os.environ.get("SALAD_FUZZ", "0"))
WRONG = [
    b"", b"\0" * 40, b"\xff\xfe\x00", b"null", b"[]", b"1", b'"x"', b"{}", b'{"a": {}}', b"[" * 100_000, b'{"a":' * 100_000,
    b"\xef\xbb\xbf{}", b"x = " + b"[" * 100_000, b"x" * 1000, b'{"scoring": 3}', b'[{"id": 1}]', b"9" * 5000,
    b'{"id": "y", "supervisions": []}\n', b'{"sha256": 3}', b'{"sha256": {"x": 1, "../x": "y"}}',
    b'{"encoder": 1, "llm": {}, "adapter": []}',
]  # fmt: skip


RUN = "runs/r0123456789ab"


def checkpoint(lab):
    checkpoints.verify(lab / RUN / "checkpoints/step-5")
    checkpoints.state_of(lab / RUN / "checkpoints/step-5")


READERS = {  # file: what reads it
    "speech/said/cuts.000000.jsonl": lambda lab: [
        shar.Shar(lab, "said").rows(), shar.damage(lab, "said", 0), list(shar.Shar(lab, "said")),
        [shar.Shar(lab, "said").row(id) for id in shar.Shar(lab, "said").ids],
    ],
    "corpora/mine/part-0.parquet": lambda lab: corpora.texts(lab, ["mine"]),
    "tasks/own.jsonl": lambda lab: tasks.load(lab, "own"),
    "study.json": lambda lab: [lookup.scoring_spans(lab, "r0123456789ab"), analysis.read_study(lab, store.connect(lab)),
                               graph.claim(lab, recipes.miniature())],
    "targets.toml": lambda lab: targets.read(lab / "targets.toml"),
    ".study/run.json": lambda lab: notes.recall(lab, "run"),
    ".study/cell.failed.json": lambda lab: notes.failures(lab),
    "speech/l1/selection.json": lambda lab: voicing.voicings(store.connect(lab), "l1"),
    f"{RUN}/config.json": lambda lab: [configuration(lab / f"{RUN}/config.json"), read_json(lab / f"{RUN}/config.json")],
    f"{RUN}/metrics-0.jsonl": lambda lab: RunFolder.open(lab, "r0123456789ab").metrics(),
    f"{RUN}/checkpoints/step-5/manifest.json": checkpoint,
    f"{RUN}/checkpoints/step-5/state.json": lambda lab: checkpoints.state_of(lab / RUN / "checkpoints/step-5"),
    "models/teacher/config.json": lambda lab: load_llm(LLMConfig(), lab),
    "models/teacher/model.safetensors": lambda lab: load_llm(LLMConfig(), lab),
    "models/teacher/tokenizer.json": lambda lab: load_tokenizer("models/teacher", lab),
    "models/teacher/tokenizer_config.json": lambda lab: load_tokenizer("models/teacher", lab),
    "models/encoder/config.json": lambda lab: load_encoder(EncoderConfig(), lab),
    "models/encoder/model.safetensors": lambda lab: load_encoder(EncoderConfig(), lab),
    "saved/speech_lm.json": lambda lab: SpeechLM.from_pretrained(lab / "saved", lab),
    "saved/adapter.safetensors": lambda lab: SpeechLM.from_pretrained(lab / "saved", lab),
}  # fmt: skip
SLOW = ("models/", "saved/")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = tmp_path_factory.mktemp("damaged") / "lab"
    tiny.teacher(lab / "models/teacher")
    tiny.encoder(lab / "models/encoder")
    SpeechLM.build(tiny.config(), lab).save_pretrained(lab / "saved")
    shar.write(lab, "said", range(3), spoken, job_id=lambda n: f"y{n:012}")
    (lab / "log").rename(lab / "no-log")
    (lab / "corpora/mine").mkdir(parents=True)
    pq.write_table(pa.table({"text": ["one", "two"], "answer": ["a", None]}), lab / "corpora/mine/part-0.parquet")
    item = {"item_id": "1", "context": "Who?", "choices": ["a", "b"], "answer": 0}
    config = {"run_id": "r0123456789ab", "kind": "stage1", "config": tiny.config().model_dump(mode="json"), "recipe": "x"}
    for name, text in {
        "tasks/own.jsonl": json.dumps(item) + "\n",
        "study.json": "",
        "targets.toml": 'default = "here"\n[box]\nengine = "ssh"\nhost = "h"\n',
        ".study/run.json": '"r1"',
        ".study/cell.failed.json": '{"error": "x"}',
        "speech/l1/selection.json": '{"selection_id": "l1", "voices": ["a"], "tts": "espeak", "seed": 0}',
        f"{RUN}/config.json": json.dumps(config),
        f"{RUN}/metrics-0.jsonl": '{"step": 1, "values": {"loss": 1.0}}\n{"step": 2, "values": {"loss": 1.0}}\n',
        f"{RUN}/checkpoints/step-5/state.json": '{"step": 5}',
    }.items():
        (lab / name).parent.mkdir(parents=True, exist_ok=True)
        (lab / name).write_text(text)
    (lab / "study.json").unlink()
    graph.claim(lab / "new", recipes.miniature())
    (lab / "new/study.json").rename(lab / "study.json")
    sha = {"state.json": store.verification.sha256(lab / f"{RUN}/checkpoints/step-5/state.json")}
    (lab / f"{RUN}/checkpoints/step-5/manifest.json").write_text(json.dumps({"step": 5, "sha256": sha}))
    return lab


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_in_one_line_or_read_as_far_as_it_is_whole(lab, name):
    path, rng = lab / name, random.Random(name)
    data = path.read_bytes()
    READERS[name](lab)
    forms = [*WRONG, *(mangled(data, rng) for _ in range(FORMS if not name.startswith(SLOW) else FORMS // 4))]
    try:
        for changed in forms:
            path.write_bytes(changed)
            try:
                READERS[name](lab)
            except UserError as error:
                assert len(str(error).splitlines()) == 1, (changed[:200], error)
    finally:
        path.write_bytes(data)


def sounds():
    rng = np.random.default_rng(0)
    for kind, subtype in [
        ("FLAC", "PCM_16"),
        ("MP3", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("WAV", "PCM_16"),
        ("WAV", "MS_ADPCM"),
    ]:
        buffer = io.BytesIO()
        soundfile.write(buffer, rng.normal(0, 0.1, 16000).astype(np.float32), 16000, format=kind, subtype=subtype)
        yield kind, buffer.getvalue()


@pytest.mark.parametrize("read", ["shar", "corpora"])
def test_sound_that_makes_libsndfiles_binding_raise_anything_is_one_line(tmp_path, read):
    rng, path = random.Random(2), tmp_path / "x.tar"
    for kind, data in sounds():
        for changed in [*WRONG, *(mangled(data, rng) for _ in range(10 * FORMS))]:
            path.write_bytes(changed)
            row = {"audio_path": "x.tar", "audio_offset": 0, "audio_bytes": len(changed), "synthesis_id": "y", "duration_s": 1.0}
            try:
                corpora.audio_of(tmp_path, row, 16000) if read == "corpora" else shar.decode_flac(changed, "it", 16000)
            except UserError as error:
                assert len(str(error).splitlines()) == 1, (kind, error)
