"""A lab from elsewhere runs no code: names of the form package.module:name in its data are refused until they are allowed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from labs import make_lab

import launch_gpu
import store
from salad import lookup, parts, selection, training
from salad.config import EncoderConfig, RunConfig
from salad.engines import Run, targets
from salad.engines.spec import Spec
from salad.engines.targets import Target
from salad.errors import SaladError
from salad.models.encoders import load_encoder
from salad.models.speech_lm import SpeechLM
from salad.passes import run as passes
from salad.runs import RunFolder
from salad.speech import load_tts
from workbench.cli import app

ROOT = Path(__file__).parent.parent
EVIL = "a_strangers_part:Boom"


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.delenv(parts.VARIABLE, raising=False)


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported; gone again afterwards."""
    folder, file = tmp_path / "code", tmp_path / "marker"
    folder.mkdir()
    (folder / "a_strangers_part.py").write_text(
        f"open({str(file)!r}, 'a').write('run')\ndef Boom(*a):\n    raise SystemExit('boom')\nif __name__ == '__main__': Boom()\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    yield file
    sys.modules.pop("a_strangers_part", None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    lab = tmp_path_factory.mktemp("poisoned") / "lab"
    return lab, make_lab(lab, broad=80, spoken=16, heldout=2, n_items=4)


def configured(**changes) -> dict:
    config = RunConfig(kind="stage1", contender="stage1", optim={"steps": 2, "lr_adapter": 1e-3, "lr_llm": 1e-3})
    return config.model_dump(mode="json") | changes


@pytest.fixture(scope="module")
def poisoned(shared):
    """The lab with the stranger's name in every place that can name code: a run and its checkpoint, a launch, all
    syntheses, a selection."""
    lab, ids = shared
    run = RunFolder.get_or_create(lab, "stage1", "theirs", configured(encoder={"name": EVIL, "dtype": "float32"}))
    folder = run.path / "checkpoints" / "step-2"
    store.atomic.write_json(
        folder / "model" / "speech_lm.json",
        {"llm": run.config["llm"], "encoder": {"name": EVIL}, "adapter": run.config["adapter"], "frozen": {}},
    )
    store.atomic.write_json(folder / "state.json", {"step": 2})
    store.atomic.write_json(folder / "manifest.json", {"step": 2, "sha256": {}})
    store.atomic.write_json(run.path / "status.json", {"state": "done", "ended_at": "2027-01-01T00:00:00Z", "step": 2})
    launched = RunFolder.get_or_create(lab, "stage1", "theirs", configured(seed=1))
    Spec(run_id=launched.run_id, on="theirs", engine=EVIL, target=Target(engine=EVIL), module=EVIL.split(":")[0]).save(launched)
    store.atomic.write_json(launched.path / "status.json", {"state": "failed"})
    module = RunFolder.get_or_create(lab, "stage1", "theirs", configured(seed=2))
    Spec(run_id=module.run_id, on="here", engine="here", target=Target(engine="here"), module=EVIL.split(":")[0]).save(module)
    store.atomic.write_json(module.path / "status.json", {"state": "failed"})
    rows = store.connect(lab).sql("FROM syntheses").to_arrow_table().to_pylist()
    store.publish(lab, "syntheses", [row | {"tts": EVIL} for row in rows], {"speech": "lab", "seed": 7})
    drawn = store.connect(lab).execute("SELECT * FROM selected WHERE selection_id = ?", [ids["active"]])
    rows = [dict(zip([c[0] for c in drawn.description], row, strict=True)) for row in drawn.fetchall()]
    store.publish(lab, "selected", [row | {"selection_id": "l0evil"} for row in rows], {"evil": 1})
    store.publish(lab, "selections", [{
        "selection_id": "l0evil", "clustering_id": ids["clustering"], "run_id": ids["run"], "step": ids["step"],
        "strategy": EVIL, "gamma": 2.0, "budget_h": 90.0, "seed": 0}], {"evil": 1})  # fmt: skip
    store.append(
        lab, "decisions", selection_id="l0evil", target="sample", sample_id=rows[0]["sample_id"], verdict="drop", reviewer="me"
    )
    spoken = RunFolder.get_or_create(lab, "pass", "probe", {"pass": "probe", "tts": EVIL, "clustering": ids["clustering"]})
    return ids | {"lab": lab, "run": run.run_id, "launched": launched.run_id, "module": module.run_id, "pass": spoken}


def salad(*arguments) -> int:
    with pytest.raises(SystemExit) as left:
        app.main([str(a) for a in arguments])
    return left.value.code


def test_what_a_lab_names_is_not_run_by_any_command(poisoned, marker, capsys):
    lab, run = poisoned["lab"], poisoned["run"]
    config = lab / "runs" / run / "config.json"
    refused = [
        ["train", config],
        ["plan", config],
        ["evaluate", "--run", run, "--modality", "text"],
        ["pass", "score", "--run", run, "--speech", "selected"],
        ["pass", "encode", "--run", run, "--speech", "selected", "--yes"],
        ["pass", "synthesise", "--selection", "l0evil"],
    ]
    for arguments in refused:
        assert salad(*arguments, "--lab", lab) == 2, arguments
        output = capsys.readouterr().err
        assert f"--allow-parts {EVIL}" in output and parts.VARIABLE in output and len(output.splitlines()) == 1, (
            arguments,
            output,
        )
    salad("report", "--lab", lab)
    salad("sql", "select count(*) from misalignment", "--lab", lab)
    capsys.readouterr()
    assert launch_gpu.main(["list", "--lab", str(lab)]) == 0
    for name in ("launched", "module"):
        assert launch_gpu.main(["resume", poisoned[name], "--lab", str(lab)]) == 2
        assert "--allow-parts a_strangers_part" in capsys.readouterr().err
        launch_gpu.main(["logs", poisoned[name], "--lab", str(lab)])
    assert not marker.exists()


def test_what_a_lab_names_is_not_run_by_python(poisoned, marker):
    lab = poisoned["lab"]
    for call in (
        lambda: SpeechLM.from_pretrained(lab / "runs" / poisoned["run"] / "checkpoints" / "step-2" / "model", lab),
        lambda: training.train(lab, poisoned["run"]),
        lambda: lookup.model_of(lab, poisoned["run"]),
        lambda: passes.perform(poisoned["pass"]),
        lambda: passes.to_encode(lab, "selected", poisoned["run"], None),
        lambda: selection.refill(lab, "l0evil"),
        lambda: selection.to_synthesise(lab, "l0evil"),
        lambda: Run.open(lab, poisoned["launched"]).resume(),
        lambda: Run.open(lab, poisoned["module"]).resume(),
    ):
        with pytest.raises(SaladError, match="--allow-parts a_strangers_part"):
            call()
    assert Run.open(lab, poisoned["launched"]).status()["state"] == "failed"  # what is known of it is still shown
    assert not marker.exists()


def test_what_a_lab_names_is_not_run_by_the_notebooks_and_the_app(poisoned, marker):
    from workbench.arena.questions import Listener
    from workbench.review.actions import speak_now

    lab = poisoned["lab"]
    con = store.connect(lab)
    silent = con.execute("SELECT sample_id FROM samples ANTI JOIN syntheses USING (sample_id) LIMIT 1").fetchone()[0]
    with pytest.raises(SaladError, match="syntheses.tts, names a_strangers_part:Boom"):
        speak_now(lab, con, silent)
    with pytest.raises(SaladError, match="syntheses.tts, names a_strangers_part:Boom"):
        _ = Listener(lab).tts
    for name in ("selection", "training", "divergences", "results"):
        program = (
            f"import runpy, sys; app = runpy.run_path({str(ROOT / 'notebooks' / name)!r} + '.py')['app']; "
            f"from pathlib import Path; app.run(defs={{'lab': Path({str(lab)!r})}})"
        )
        subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=300, check=False)
    assert not marker.exists()


def test_what_is_allowed_is_run_and_the_marker_is_one(poisoned, marker, monkeypatch):
    lab = poisoned["lab"]
    monkeypatch.setenv(parts.VARIABLE, f"something:else, {EVIL}")
    with pytest.raises(SystemExit, match="boom"):
        passes.to_encode(lab, "selected", poisoned["run"], None)
    assert marker.exists()


def test_a_flag_of_any_command_allows_and_may_be_repeated(poisoned, marker, monkeypatch):
    monkeypatch.setenv(parts.VARIABLE, "")
    lab, run = poisoned["lab"], poisoned["run"]
    left = parts.take_flags(["train", "--allow-parts", "one:A", "x", "--allow_parts=two.three:B", "--", "--allow-parts"])
    assert left == ["train", "x", "--", "--allow-parts"] and os.environ[parts.VARIABLE] == "one:A,two.three:B"
    with pytest.raises(SaladError, match="name what is allowed"):
        parts.take_flags(["train", "--allow-parts"])
    arguments = ("pass", "encode", "--run", run, "--speech", "selected", "--yes", "--lab", lab)
    assert salad(*arguments, "--allow-parts=a_strangers_part") == "boom"
    assert marker.exists()


def test_what_a_user_names_needs_no_permission(tmp_path, marker):
    for call in (lambda: load_tts(EVIL), lambda: load_encoder(EncoderConfig(name=EVIL))):
        with pytest.raises(SystemExit, match="boom"):
            call()
    config = RunConfig.model_validate(configured(encoder={"name": EVIL, "dtype": "float32"}))
    run = training.prepare(tmp_path / "lab", config, "mine")  # a recipe of one's own
    with pytest.raises(SaladError, match="no model folder 'models/teacher'"):  # it goes on, as far as this lab lets it
        training.train(run.lab, run.run_id)


@pytest.mark.parametrize(("name", "passes_by"), [
    ("espeak", True), ("kokoro:/models/kokoro", True), ("piper:voices", True), ("kokoro-onnx:/k::small.en", True),
    ("piperish:Boom", False), ("models/encoder", True), ("kyutai/mimi", True), (None, True),
    ("salad.speech.espeak:Espeak", True), ("salad.studies:active_filtered", True),
    ("salad.runs:git_commit", False), ("os:abort", False), ("os.path:join", False), ("a:b:c", False), (":x", False),
    ("subprocess:", False), ("ähm:x", False), ("salad.speech:import_module", False),
])  # fmt: skip
def test_only_names_of_a_known_list_pass(name, passes_by):
    if passes_by:
        parts.check(name, "the lab")
    else:
        with pytest.raises(SaladError, match="names .* which is code that is not salad's own"):
            parts.check(name, "the lab")


def test_every_import_by_name_goes_through_one_place():
    results = [
        f"{path.relative_to(ROOT)}:{n}"
        for folder in ("salad", "workbench", "store", "notebooks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if ("import_module(" in line or "__import__(" in line) and 'f"salad.' not in line
    ]
    assert [place.partition(":")[0] for place in results] == ["salad/__init__.py", "salad/parts.py"]


def test_a_launch_hands_on_what_is_allowed_by_name(monkeypatch):
    spec = Spec(run_id="r000000000000", on="here", engine="here", target=Target(engine="here", env=("HF_TOKEN",)))
    assert spec.env == ("HF_TOKEN",)
    parts.allow("mine.own:Part")
    assert spec.env == ("HF_TOKEN", parts.VARIABLE) and json.loads(spec.model_dump_json())["target"]["env"] == ["HF_TOKEN"]


def test_a_machine_that_a_lab_names_starts_no_program_unless_it_is_the_users_own(tmp_path, marker, monkeypatch):
    """`ssh_options` may hold a ProxyCommand, and `python`, `sky` … are programs: opening a run would start them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SALAD_TARGETS", str(tmp_path / "targets.toml"))
    (tmp_path / "targets.toml").write_text("")
    evil = Target(engine="ssh", host="nowhere.invalid", ssh_options=("-o", f"ProxyCommand=touch {marker}"))
    run = RunFolder.get_or_create(tmp_path / "lab", "stage1", "theirs", configured(seed=9))
    Spec(run_id=run.run_id, on="box", engine="ssh", target=evil).save(run)
    (tmp_path / "state" / "salad" / "launched-on.txt").unlink()  # somebody else has launched it
    store.atomic.write_json(run.path / "status.json", {"state": "failed"})
    opened = Run.open(tmp_path / "lab", run.run_id)
    assert opened.status()["state"] == "failed" and isinstance(opened.logs(), str)
    with pytest.raises(SaladError, match=r"ssh_options of the machine 'box' is not in your targets file"):
        opened.resume()
    assert not marker.exists()
    options = json.dumps(list(evil.ssh_options))
    (tmp_path / "targets.toml").write_text(f'[box]\nengine = "ssh"\nhost = "nowhere.invalid"\nssh_options = {options}\n')
    assert Run.open(tmp_path / "lab", run.run_id).refused is None  # the user's own file says the same
    (tmp_path / "targets.toml").write_text("")
    targets.remember(evil)
    assert Run.open(tmp_path / "lab", run.run_id).refused is None  # the user has launched on it before
