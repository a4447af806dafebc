"""Tasks of lm-evaluation-harness: on the text side our numbers are those of its own `hf` model, item by item."""

import json

import pytest
import torch
from tiny import TEXTS, config, encoder, teacher
from tools import shared

from salad import SaladError
from salad.evaluation import harness
from salad.evaluation.contenders import Ours
from salad.evaluation.harness import HarnessLM
from salad.models.speech_lm import SpeechLM

WORDS = [text.split() for text in TEXTS]


def write(lab, name, rows):
    (lab / "tasks").mkdir(exist_ok=True, parents=True)
    (lab / "tasks" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_items(count=24):
    """Items of the texts' own words, some of whose choices begin alike or run over several tokens."""
    return [
        {
            "item_id": f"q-{n}",
            "domain": "stories",
            "answer": n % 4,
            "context": f"{TEXTS[n % len(TEXTS)]} What comes after {WORDS[n % 6][n % 4]}?",
            "choices": [" ".join(WORDS[(n + k) % 6][k : k + 2 + k]) for k in range(4)],
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module", params=[True, False], ids=["with a BOS", "without a BOS"])
def place(request, tmp_path_factory):
    """A lab; its teacher's tokenizer adds the BOS in its post-processor, or knows none."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    lab = tmp_path_factory.mktemp("lab")
    folder = teacher(lab / "models" / "teacher", bos=request.param)
    encoder(lab / "models" / "encoder")
    beside = lab / "beside"  # the same, for the harness: METHOD.md's prefix token comes from the post-processor
    teacher(beside, bos=request.param)
    tokenizer = AutoTokenizer.from_pretrained(beside)
    prefix = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{prefix} $A", special_tokens=[(prefix, tokenizer.convert_tokens_to_ids(prefix))]
    )
    tokenizer.save_pretrained(folder if request.param else beside)
    return lab, (folder if request.param else beside)


def hf_results(folder, task):
    """What lm-evaluation-harness' own `hf` model and evaluator make of a task: a row an item."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    bos = True if folder.name == "teacher" else None  # without a BOS the folder's post-processor adds the prefix token
    model = HFLM(pretrained=str(folder), backend="causal", add_bos_token=bos, batch_size=5, device="cpu", dtype="float32")
    (first, *_) = model.tok_encode("The otter")
    assert first == (model.tokenizer.bos_token_id if bos else model.tokenizer.eos_token_id)
    return evaluated(lm_eval, model, task)


def evaluated(lm_eval, model, task):
    plain = type(task.harness).doc_to_text
    marked, task.harness.doc_to_text = task.harness.doc_to_text, plain.__get__(task.harness)
    if isinstance(model, HarnessLM):
        task.harness.doc_to_text = marked
    task.harness.set_config(key="num_fewshot", value=task.spec.shots or 0)
    task.harness.set_fewshot_seed(seed=harness.FEWSHOT_SEED)
    result = lm_eval.evaluate(model, {task.spec.text: task.harness}, log_samples=True, bootstrap_iters=0)
    (samples,) = result["samples"].values()
    task.harness.doc_to_text = marked
    return sorted(samples, key=lambda row: row["doc_id"])


def ours_results(lab, task):
    model = HarnessLM(Ours(SpeechLM.build(config(), lab).eval(), "teacher", teacher=True, batch=7))
    flat = iter(model.loglikelihood([request for some in task.requests for request in some]))
    answers = [[next(flat) for _ in some] for some in task.requests]
    return answers, [task.results(i, answer) for i, answer in enumerate(answers)]


def assert_the_same(lab, folder, task):
    reference = hf_results(folder, task)
    answers, results = ours_results(lab, task)
    assert len(reference) == len(results) == len(task.items)
    for row, answer, result in zip(reference, answers, results, strict=True):
        assert [score for score, _ in answer] == pytest.approx([float(r[0][0]) for r in row["resps"]], abs=1e-4, rel=1e-6)
        assert [greedy for _, greedy in answer] == [str(r[0][1]) == "True" for r in row["resps"]]
        assert (result["acc"], result["acc_norm"]) == (row["acc"], row["acc_norm"])
    return results


@pytest.mark.parametrize("spec", ["questions", "questions@3"])
def test_text_numbers_are_those_of_the_harness_own_hf_model(place, spec):
    lab, folder = place
    write(lab, "questions", own_items())
    result = assert_the_same(lab, folder, harness.load(lab, spec))
    # acc and acc_norm really are two measures here
    assert [r["acc"] for r in result] != [r["acc_norm"] for r in result]


@pytest.mark.data
def test_text_numbers_on_piqa_are_those_of_the_harness_own_hf_model(place):
    piqa = shared("data/piqa")
    lab, folder = place
    rows = [json.loads(line) for line in (piqa / "valid_600.jsonl").read_text().splitlines()][:120]
    labels = (piqa / "valid_600.labels").read_text().split()
    write(lab, "piqa", [row | {"label": int(label)} for row, label in zip(rows, labels, strict=False)])
    task = harness.load(lab, "piqa")
    assert task.items[0].context == rows[0]["goal"] and len(task.items) == 120
    assert_the_same(lab, folder, task)


def test_our_model_in_the_harness_own_evaluator_gives_the_same_rows(place):
    import lm_eval

    lab, _ = place
    write(lab, "questions", own_items())
    task = harness.load(lab, "questions@2")
    model = HarnessLM(Ours(SpeechLM.build(config(), lab).eval(), "teacher", teacher=True))
    rows = evaluated(lm_eval, model, task)
    _, result = ours_results(lab, task)
    assert [(row["acc"], row["acc_norm"]) for row in rows] == [(r["acc"], r["acc_norm"]) for r in result]


def rows_of(name):
    return {
        "arc_challenge": [{"id": "M1", "question": "Which is red?", "answerKey": "B",
                           "choices": {"text": ["sky", "blood"], "label": ["A", "B"]}}],
        "hellaswag": [{"ind": 4, "activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "label": "1",
                       "endings": ["is up.", "is down.", "a", "b"]}],
        "openbookqa": [{"id": "7-1", "question_stem": "The sun is", "answerKey": "A",
                        "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}}],
        "mmlu_anatomy": [{"question": " Which bone? ", "choices": ["a", "b", "c", "d"], "answer": 2}],
        "storycloze": [{"input_sentence_1": "A.", "input_sentence_2": "B.", "input_sentence_3": "C.",
                        "input_sentence_4": "D.", "sentence_quiz1": "x.", "sentence_quiz2": "y.", "answer_right_ending": 2}],
        "mmsu": [{"prompt": "What?\nA. x\nB. y\nC. z\nD. w", "reference": "C", "question_id": 70, "category": "law",
                  "src": "stemez-Law"}],
        "sd_qa": [{"prompt": "Who is it?", "reference": "Bob; Bobby"}],
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name, spoken, prompt, choices, answer",
    [
        ("arc_challenge", "Which is red?", "Question: Which is red?\nAnswer:", ("sky", "blood"), 1),
        ("hellaswag", "Roof: A man sits. He", "Roof: A man sits. He", ("is up.", "is down.", "a", "b"), 1),
        ("openbookqa", "The sun is", "The sun is", ("hot", "cold"), 0),
        ("mmlu_anatomy", "Which bone?", None, ("A", "B", "C", "D"), 2),
        ("storycloze", "A. B. C. D.", "A. B. C. D.", ("x.", "y."), 1),
        ("mmsu", "What?\nA. x\nB. y\nC. z\nD. w", "What?\nA. x\nB. y\nC. z\nD. w\nAnswer:", ("A", "B", "C", "D"), 2),
        ("sd_qa", "Who is it?", "Question: Who is it?\nAnswer:", (), -1),
    ],
)
def test_a_tasks_own_yaml_reads_the_rows_of_its_data_set(tmp_path, name, spoken, prompt, choices, answer):
    write(tmp_path, name, rows_of(name))
    task = harness.load(tmp_path, name)
    (item,) = task.items
    assert (item.context, item.choices, item.answer) == (spoken, choices, answer)
    assert item.item_id == {"mmsu": "70", "arc_challenge": "M1", "openbookqa": "7-1", "hellaswag": "4"}.get(name, "0")
    assert task.spoken_in(0) == [spoken]
    context = task.requests[0][0].args[0]
    assert prompt is None or harness.unmarked(context) == prompt
    if name == "sd_qa":
        for message, right in (("It is Bobby!", 1.0), ("bob", 1.0), ("Bobs", 0.0), ("", 0.0)):
            assert task.results(0, [message]) == {"acc": right}
    else:
        scores = [(-1.0 if n == answer else -9.0, False) for n in range(len(choices))]
        assert task.results(0, scores)["acc"] == task.results(0, scores)["acc_norm"] == 1.0


def test_examples_are_text_or_spoken_as_the_name_says(tmp_path):
    write(tmp_path, "questions", own_items(6))
    for name, spoken in (("questions@2", 1), ("questions@2-spoken", 3), ("questions", 1)):
        task = harness.load(tmp_path, name)
        assert [len(task.spoken_in(i)) for i in range(6)] == [spoken] * 6
        assert all(task.spoken_in(i)[-1] == task.items[i].context for i in range(6))
    (tmp_path / "tasks" / "questions.examples.jsonl").write_text(
        json.dumps({"item_id": "e", "context": "Ready?", "choices": ["Yes.", "No."], "answer": 0}) + "\n"
    )
    context = harness.load(tmp_path, "questions@1").requests[0][0].args[0]
    assert harness.unmarked(context).startswith("Ready? Yes.\n\n")


def test_a_group_stands_for_its_tasks(tmp_path):
    names = harness.expand(tmp_path, ["mmlu_stem@5", "piqa"])
    assert "mmlu_astronomy@5" in names and names[-1] == "piqa" and len(names) == 20


def test_a_recording_is_encoded_once_and_examples_are_run_once(place):
    """Shared or not, the scores are the same: every choice alone with its whole prompt is the reference."""
    from tiny import spoken_text

    from salad.evaluation.scoring import Recording, loglikelihoods

    lab, _ = place
    model = SpeechLM.build(config(), lab).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    sounds = [Recording(f"y{n}", spoken_text(text, n)[1]) for n, text in enumerate(TEXTS)]
    shots = [sounds[0], "\nAnswer: Fish.\n\n", sounds[1], "\nAnswer: Paris, by the sea.\n\n"]
    prompts = [[*shots, sound, "\nAnswer:"] for sound in sounds[2:]] + [[sound] for sound in sounds] + [["Who?"]]
    choices = [[" A book.", " A book and a pear.", " x", " plums"][: 2 + n % 3] for n in range(len(prompts))]
    received, runs = [], []
    encode, decode = model.encoder.forward, model.llm.get_decoder().forward
    model.encoder.forward = lambda samples: received.append(len(samples)) or encode(samples)
    model.llm.get_decoder().forward = lambda *a, **k: runs.append(k) or decode(*a, **k)
    result = loglikelihoods(model, prompts, choices, batch=3)
    assert len(received) == len(sounds)  # each once, though two of them stand in five prompts
    model.encoder.forward, model.llm.get_decoder().forward = encode, decode
    alone = [[loglikelihoods(model, [p], [[c]])[0][0] for c in some] for p, some in zip(prompts, choices, strict=True)]
    for some, others in zip(result, alone, strict=True):
        assert [s for s, _ in some] == pytest.approx([s for s, _ in others], abs=1e-4)
        assert [g for _, g in some] == [g for _, g in others]
    # what the four with the same examples begin with is run once, and their batches go on from there
    head = runs[0]["inputs_embeds"]
    assert head.shape[0] == 1 and head.shape[1] > 16
    batches = [run for run in runs[1:] if "inputs_embeds" in run]
    shared = [run for run in batches if run["attention_mask"].shape[1] > run["inputs_embeds"].shape[1]]
    assert [run["inputs_embeds"].shape[0] for run in shared] == [3, 1] and len(batches) == len(shared) + 3


def test_what_is_wrong_with_a_task_is_one_line(tmp_path):
    write(tmp_path, "piqa", [{"goal": "Eat.", "sol1": "a", "label": 0}])
    write(tmp_path, "hushed", [own_items()[0] | {"context": " "}])
    write(tmp_path, "storycloze", [rows_of("storycloze")[0] | {"sentence_quiz2": ""}])
    for name, message in (
        ("piqa", "piqa.jsonl does not fit the task|choices"),
        ("piqqa", "did you mean 'piqa'"),
        ("hushed", "empty context"),
        ("storycloze", "storycloze.jsonl does not fit the task|lacks choices"),
        ("piqa@", "write it as"),
        ("lambada_openai", "data set cannot be had|only tasks of one prompt"),
    ):
        with pytest.raises(SaladError, match=message) as error:
            harness.load(tmp_path, name)
        assert "\n" not in str(error.value)
