"""Tasks of lm-evaluation-harness, and its `LM` interface over our contenders.

A task is the harness' own YAML (HellaSwag, ARC, PIQA, OpenBookQA, MMLU ...), one of ours in the same format
(salad/evaluation/yaml), a YAML file of lab/tasks, or items of lab/tasks. What of a prompt can be spoken stands between
two marks in it, put there through `doc_to_text`, so that few-shot examples and everything else of the harness works on
prompts as it always does; `HarnessLM` turns the marked pieces into recordings (speech), into what a recogniser heard
(cascade), or back into the text that they are. A contender lays the prompt out in its own format: for a checkpoint whose
format is chat it is the user's turn, examples and all.

A task is named `piqa`, with examples `piqa@5`, with spoken examples `piqa@5-spoken`.
"""

import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM

from salad.errors import SaladError
from salad.evaluation import items as files
from salad.evaluation.items import Item
from salad.evaluation.scoring import Prompt, Recording

OPEN, CLOSE = "\ue000", "\ue001"  # of Unicode's private area: no text of a benchmark holds them
MODALITIES = ("text", "speech", "cascade")
FLOORS = ("deaf", "silent")  # speech that says nothing of the item: another item's recording, or silence
HERE = Path(__file__).parent / "yaml"
# What is spoken of the harness' own tasks; of the others, the whole prompt of an item.
SPOKEN = {
    "piqa": "{{goal}}", "arc_easy": "{{question}}", "arc_challenge": "{{question}}", "mmlu": "{{question.strip()}}",
}  # fmt: skip
FEWSHOT_SEED = 1234  # lm-evaluation-harness' own default
IDS = ("item_id", "question_id", "id", "ind")


@dataclass(frozen=True)
class TaskSpec:
    """A task's name as it is given, `name[@shots[-spoken]]`, and stored with every answer."""

    text: str
    name: str
    shots: int | None
    spoken_shots: bool

    @classmethod
    def parse(cls, text: str) -> "TaskSpec":
        found = re.fullmatch(r"([^@]+)(?:@(\d+)(-spoken)?)?", text.strip())
        if not found:
            raise SaladError(f"task {text!r}: write it as name, name@5 (five examples) or name@5-spoken")
        return cls(text.strip(), found[1], None if found[2] is None else int(found[2]), bool(found[3]))


@dataclass
class Task:
    """A task ready to be run: its items in order, and each item's requests (`lm_eval` Instances)."""

    spec: TaskSpec
    items: list[Item]
    requests: list[list]
    harness: Any = field(repr=False)
    audio: list | None = field(repr=False, default=None)  # each item's recording in the data set, where there is one

    @property
    def generates(self) -> bool:
        return self.harness.OUTPUT_TYPE == "generate_until"

    def spoken_in(self, index: int) -> list[str]:
        """The texts that are spoken in an item's prompt."""
        pieces = split(self.requests[index][0].args[0], self.spec.spoken_shots)
        return [text for spoken, text in pieces if spoken]

    def results(self, index: int, answers: list) -> dict:
        """The harness' own metrics of an item: acc and acc_norm."""
        return self.harness.process_results(self.requests[index][0].doc, answers)


def split(context: str, spoken_shots: bool) -> list[tuple[bool, str]]:
    """(spoken, text) pieces of a marked prompt; without `spoken_shots` only the last marked piece, the item's own, is
    spoken."""
    pieces = re.split(f"{OPEN}(.*?){CLOSE}", context, flags=re.DOTALL)
    last = len(pieces) - 2
    return [(i % 2 == 1 and (spoken_shots or i == last), text) for i, text in enumerate(pieces) if text]


def unmarked(context: str) -> str:
    return context.replace(OPEN, "").replace(CLOSE, "")


# --- loading ---


@contextlib.contextmanager
def _quiet():
    """The harness logs and draws bars as it loads; what goes wrong is raised."""
    import datasets

    logger, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _stamp(*folders: str) -> tuple:
    """What tells that a YAML file of these folders has changed."""
    files = [path.stat() for folder in folders for path in sorted(Path(folder).glob("*.yaml"))]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in files)


@functools.cache
def _manager(*folders: str, stamp: tuple = ()):
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=list(folders), include_defaults=False)


@functools.cache
def _named() -> dict[str, Path]:
    """{name of a task or group: the folder of lm_eval/tasks that has it}, read off its YAML files: to build the
    harness' own index of all of them takes many times as long."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    found: dict[str, Path] = {}
    for path in root.rglob("*.yaml"):
        for name in re.findall(r"^(?:task|group): *[\"']?([\w.-]+)", path.read_text(errors="replace"), re.MULTILINE):
            found.setdefault(name, root / path.relative_to(root).parts[0])
    return found


def _find(lab: Path | str, name: str):
    """The harness' manager of the task or group `name`: over lab/tasks and our own, else over a folder of its own."""
    import lm_eval.tasks

    own = [str(HERE)]
    if any((Path(lab) / "tasks").glob("*.yaml")):
        own.insert(0, str(Path(lab) / "tasks"))
    folders = [None, Path(lm_eval.tasks.__file__).parent / name.split("_")[0]]
    for folder in [*folders, _named]:
        folder = folder().get(name) if callable(folder) else folder
        here = [*own, *([str(folder)] if folder and folder.is_dir() else [])]
        manager = _manager(*here, stamp=_stamp(*here))
        if name in manager.task_index:
            return manager
    raise files.unknown(lab, name, [*_manager(*own).all_tasks, *_named()])


def expand(lab: Path | str, specs: list[str]) -> list[str]:
    """The tasks that names stand for: a group or a tag of the harness (mmlu) stands for its tasks."""
    expanded = []
    for text in specs:
        spec = TaskSpec.parse(text)
        expanded += [text.strip().replace(spec.name, name, 1) for name in _leaves(lab, spec.name)]
    return list(dict.fromkeys(expanded))


def _leaves(lab, name: str) -> list[str]:
    if name in files.names(lab):
        return [name]
    entry = _find(lab, name).task_index[name]
    if entry.tags and entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name == "GROUP":
        inner = [t if isinstance(t, str) else t.get("task") or t.get("group") for t in entry.cfg["task"]]
        return [leaf for one in inner for leaf in _leaves(lab, one)]
    return [name]


def load(lab: Path | str, text: str) -> Task:
    """A task by name (see the module's docstring). An unknown task or a broken item is a SaladError that says which."""
    from lm_eval.tasks import TaskManager  # noqa: F401  fails here, and not half-way, where lm-eval is broken

    spec = TaskSpec.parse(text)
    with _quiet():
        harness = _loaded(Path(lab), spec.name)
        if harness.OUTPUT_TYPE not in ("multiple_choice", "generate_until") or harness.multiple_input:
            raise SaladError(f"task {spec.name}: only tasks of one prompt with choices, or with an open answer, are run")
        template = (harness.config.metadata or {}).get("spoken") or SPOKEN.get(
            spec.name, SPOKEN["mmlu"] if spec.name.startswith("mmlu_") else None
        )
        spoken = _mark(harness, spec.name, template)
        harness.set_fewshot_seed(seed=FEWSHOT_SEED)
        shots = (harness.config.num_fewshot or 0) if spec.shots is None else spec.shots
        column = (harness.config.metadata or {}).get("audio")
        items, requests, audio = [], [], []
        for number, doc in enumerate(harness.eval_docs):
            item = _item(harness, spec, number, doc, spoken(doc))
            files.check(item, f"task {spec.name}, item {number + 1}")
            try:
                context = harness.fewshot_context(doc, num_fewshot=shots, gen_prefix=harness.doc_to_prefix(doc))
            except (AssertionError, ValueError) as error:
                raise SaladError(f"task {spec.text}: {shots} examples cannot be had ({error})") from None
            made = harness.construct_requests(doc=doc, ctx=context, metadata=(spec.text, number, 1))
            items.append(item)
            requests.append(made if isinstance(made, list) else [made])
            audio.append(doc.get(column) if column else None)
    if len({item.item_id for item in items}) < len(items):
        if "item_id" in harness.features:
            raise SaladError(f"task {spec.name}: item ids are not unique")
        items = [dataclasses.replace(item, item_id=str(number)) for number, item in enumerate(items)]
    return Task(spec, items, requests, harness, audio if any(audio) else None)


def _loaded(lab: Path, name: str):
    """The harness' task object, over the rows of lab/tasks/<name>.jsonl where there are such."""
    path, overrides, base = lab / "tasks" / f"{name}.jsonl", {}, name
    if path.is_file():
        found = files.rows(path)
        ours = files.is_ours(found[0])
        if ours:
            found, base = [vars(item) | {"choices": list(item.choices)} for item in files.own(path, name)], "items"
        examples = path.with_suffix(".examples.jsonl")
        shown = "examples" if examples.is_file() else "test"
        overrides = {
            "custom_dataset": functools.partial(_dataset, found, examples if shown == "examples" else None),
            "dataset_kwargs": None, "test_split": "test", "validation_split": None, "training_split": None,
            "fewshot_split": shown,
        }  # fmt: skip
    manager = _find(lab, base)
    try:
        task = _built(manager, base, overrides)
        if task.OUTPUT_TYPE == "multiple_choice" and "acc_norm" not in task.aggregation():
            both = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
            task = _built(manager, base, overrides | {"metric_list": both})
        return task
    except SaladError:
        raise
    except OSError as error:  # datasets' own, offline or without the data set
        raise SaladError(f"task {name}: its data set cannot be had ({_first_line(error)}); put its rows into {path}") from None
    except Exception as error:
        if not path.is_file():
            raise
        raise SaladError(f"task {name}: {path} does not fit the task: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _built(manager, name: str, overrides: dict):
    found = manager.load({"group": "salad", "task": [{"task": name, **overrides}]})["tasks"]
    return next(iter(found.values()))


def _dataset(found: list[dict], examples: Path | None, **_):
    import datasets

    made = {"test": datasets.Dataset.from_list(found)}
    if examples is not None:
        made["examples"] = datasets.Dataset.from_list(files.rows(examples))
    return datasets.DatasetDict(made)


def _mark(harness, name: str, template: str | None) -> Callable[[dict], str]:
    """Let the harness' prompts mark what is spoken; returns what is spoken of a row."""
    from lm_eval import utils

    plain = harness.doc_to_text

    def spoken(doc, text=None) -> str:
        text = plain(doc) if text is None else text
        return (utils.apply_template(template, doc) if template else text).strip()

    def marked(doc, doc_to_text=None) -> str:
        text = plain(doc, doc_to_text)
        said = spoken(doc, text)
        at = text.find(said)
        if at < 0:
            raise SaladError(f"task {name}: {said[:60]!r} is to be spoken, but its prompt does not hold it")
        return f"{text[:at]}{OPEN}{said}{CLOSE}{text[at + len(said) :]}" if said else text

    harness.doc_to_text = marked
    return spoken


def _item(harness, spec: TaskSpec, number: int, doc: dict, spoken: str) -> Item:
    name = next((str(doc[key]) for key in IDS if doc.get(key) is not None), str(number))
    domain = doc.get("domain") or spec.name
    try:
        target = harness.doc_to_target(doc)
        if harness.OUTPUT_TYPE == "generate_until":
            reference = target if isinstance(target, str) else "; ".join(map(str, target))
            return Item(name, spec.text, domain, spoken, (), -1, reference)
        choices = tuple(map(str, harness.doc_to_choice(doc)))
        answer = target if isinstance(target, int) else choices.index(target)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise SaladError(f"task {spec.name}, item {name}: its choices or its answer are missing or wrong ({error})") from None
    return Item(name, spec.text, domain, spoken, choices, answer)


# --- the harness' view of a contender ---


class HarnessLM(LM):
    """A contender as a model of lm-evaluation-harness, in one modality.

    hear(task, text): what stands for a spoken piece of a prompt: a `Recording` for speech, the transcript (str) for a
    cascade. `contender` is anything of `salad.evaluation.contenders`.
    """

    def __init__(self, contender, modality: str = "text", hear: Callable[[str, str], Recording | str] | None = None):
        super().__init__()
        if modality not in (*MODALITIES, *FLOORS):
            raise SaladError(f"no modality {modality!r}; known: {', '.join((*MODALITIES, *FLOORS))}")
        if modality != "text" and hear is None:
            raise SaladError(f"{modality} needs something to hear")
        self.contender, self.modality, self.hear = contender, modality, hear
        self.progress: Callable[[int, int], None] | None = None

    def prompt(self, request) -> Prompt:
        """What the contender is given for a request of the harness."""
        context = request.args[0]
        if self.modality == "text":
            return [unmarked(context)]
        spec, hear = TaskSpec.parse(request.task_name), self.hear
        assert hear is not None  # whatever is not read is heard
        pieces = split(context, spec.spoken_shots)
        return [hear(spec.name, text) if spoken else unmarked(text) for spoken, text in pieces]

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """The harness' method: (sum of log-probabilities, is it greedy) a request. Requests that share a prompt are
        scored together."""
        groups: dict[tuple, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault((request.task_name, request.args[0]), []).append(number)
        members = list(groups.values())
        prompts = [self.prompt(requests[some[0]]) for some in members]
        wanted = [[requests[i].args[1] for i in some] for some in members]
        results: list = [None] * len(requests)
        found = self.contender.loglikelihoods(prompts, wanted, self.progress)
        for some, scores in zip(members, found, strict=True):
            for i, score in zip(some, scores, strict=True):
                results[i] = score
        return results

    def generate_until(self, requests) -> list[str]:
        """The harness' method: greedy answers, each ending before the first of its stop strings."""
        results: list = [None] * len(requests)
        alike: dict[tuple, list[int]] = {}
        for number, request in enumerate(requests):
            until, longest = tuple(request.args[1].get("until") or ()), request.args[1].get("max_gen_toks", 64)
            alike.setdefault((until, longest), []).append(number)
        for (until, longest), members in alike.items():
            prompts = [self.prompt(requests[i]) for i in members]
            for i, text in zip(members, self.contender.generate(prompts, longest, until), strict=True):
                results[i] = text
        return results

    def loglikelihood_rolling(self, requests):
        raise SaladError("perplexity of whole texts is not a task of speech: use lm-eval's own `hf` model for it")
