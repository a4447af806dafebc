"""Which code goes with a run: what git tracks and new code files; no key, no data, and everything that is taken is named."""

import hashlib
import json
import os
import subprocess

import pytest

import store
from salad.engines import codesync, launch_run, leaks
from salad.engines.targets import Target
from salad.errors import SaladError
from salad.runs import RunFolder
from tests.tools import ROOT

# put together here, so that no line of this file looks like one
KEYS = {
    "Hugging Face Token": "HUB = '" + "hf_" + "aBcD" * 8 + "xy'",
    "AWS Access Key": "aws = '" + "AKIA" + "IOSFODNN7EXAMPLQ'",
    "GitHub Token": "github = '" + "ghp_" + "a1B2" * 9 + "'",
    "Private Key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "Google API Key": "maps = '" + "AIza" + "Sy0" * 11 + "ab'",
    "Anthropic API Key": "claude = '" + "sk-ant-" + "api03-" + "Zz9" * 8 + "'",
    "Slack Token": "slack = '" + "xoxb-" + "1234567890-1234567890-" + "abcDEF" * 4 + "'",
    "Basic Auth Credentials": "database = 'postgres://me:" + "pa55w0rd" + "@db.example.org/x'",
    "Secret Keyword": "pass" + "word = 'correct-horse-9'",
}


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    (root / "pkg").mkdir(parents=True)
    files = {".gitignore": "ignored.py\nprivate/\n", "pkg/a.py": "a = 1\n", "pkg/gone.py": "x\n", "pkg/run.sh": "#!/bin/sh\n",
             "notes.jsonl": "{}\n"}  # fmt: skip
    for name, text in files.items():
        (root / name).write_text(text)
    (root / "pkg/run.sh").chmod(0o755)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def git(root, *words) -> bytes:
    own = ("-c", "user.name=x", "-c", "user.email=x@x")
    return subprocess.run(["git", "-C", root, *own, *words], check=True, capture_output=True).stdout


@pytest.fixture
def run(tmp_path):
    return RunFolder.get_or_create(tmp_path / "lab", "stage1", "tiny", {"steps": 1})


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_code_goes_as_it_stands_with_uncommitted_changes_and_new_code_and_nothing_else(project, run, tmp_path):
    clean = codesync.record(run, project)
    assert not clean["changed"] and (run.path / "code.diff").read_bytes() == b"" and not clean["new"] + clean["left_out"]
    (project / "pkg/a.py").write_text("a = 2\n")
    (project / "pkg/gone.py").unlink()
    (project / "staged.toml").write_text("[tool]\n")
    git(project, "add", "staged.toml")
    (project / "private").mkdir()
    left_out = {"secrets.toml": b"x = 1", "answers.jsonl": b"{}", "id_rsa": b"key", ".env": b"A=1", "weights.safetensors": b"\0w",
                "study.yaml": b"a: 1", "rows.csv": b"a,b", "big.py": b"#" * (codesync.LARGEST + 1)}  # fmt: skip
    new = {"pkg/new.py": b"\0new\xff", "pkg/list.sql": b"select 1", "page.css": b"a {}", "page.js": b"1"}
    for name, data in ({"ignored.py": b"i", "private/own.py": b"p"} | left_out | new).items():
        (project / name).write_bytes(data)
    (project / "link.py").symlink_to("id_rsa")
    code = codesync.record(run, project)
    assert code["changed"] and code["commit"] == clean["commit"] and code["tree"] != clean["tree"]
    assert code["new"] == sorted(new) and code["left_out"] == sorted([*left_out, "link.py"])
    git(project, "rm", "-qf", "--cached", "staged.toml")  # the working tree goes on: the run's code stays what it was
    git(project, "checkout", "-q", "--", ".")
    (project / "pkg/new.py").unlink()
    laid = codesync.restore(run, code, tmp_path / "code", project)
    tracked = {".gitignore", "pkg/run.sh", "notes.jsonl"}
    expected = {name: (project / name).read_bytes() for name in tracked} | new
    assert contents(laid) == expected | {"pkg/a.py": b"a = 2\n", "staged.toml": b"[tool]\n"}
    assert os.access(laid / "pkg/run.sh", os.X_OK)
    assert "code is at" in codesync.differs(run, code, project)[0]


def test_a_persons_own_settings_of_git_diff_change_nothing(project, run, tmp_path):
    (project / "pkg/a.py").write_text("a = 2\n")
    plain = codesync.describe(project)
    for name, value in (
        ("diff.noprefix", "true"),
        ("diff.mnemonicPrefix", "true"),
        ("color.diff", "always"),
        ("color.ui", "always"),
        ("diff.external", "false"),
    ):
        git(project, "config", name, value)
    assert codesync.describe(project) == plain
    codesync.restore(run, codesync.record(run, project), tmp_path / "code", project)


@pytest.mark.parametrize(("kind", "line"), KEYS.items())
def test_keys_of_every_kind_are_seen_unless_a_person_has_allowed_the_line(kind, line):
    assert leaks.kind_of("pkg/a.py", line) == leaks.kind_of("settings.toml", line) == kind
    assert leaks.kind_of("pkg/a.py", f"{line}  # {leaks.ALLOWED}") is None


@pytest.mark.parametrize(("where", "kind"), zip(["a new file", "a changed file", "a staged file"], KEYS, strict=False))
def test_what_looks_like_a_key_ends_the_launch_and_its_value_is_shown_nowhere(project, run, kind, where):
    name = "pkg/a.py" if where == "a changed file" else "pkg/own.py"
    (project / name).write_text(f"a = 1\n\n{KEYS[kind]}\n")
    if where == "a staged file":
        (project / name).rename(project / "settings.toml")
        name = "settings.toml"
        git(project, "add", name)
    with pytest.raises(SaladError, match=f"{name}:3 \\({kind}\\)") as caught:
        codesync.record(run, project)
    assert "\n" not in str(caught.value) and KEYS[kind][-12:] not in str(caught.value)
    assert not (run.path / "code.diff").exists() and not (run.path / "packages.txt").exists()
    (project / name).write_text(f"a = 1\n\n{KEYS[kind]}  # {leaks.ALLOWED}\n")
    if where == "a staged file":
        git(project, "add", name)
    assert codesync.record(run, project)["changed"]


@pytest.mark.parametrize(
    "line",
    ["password = os.environ['PASSWORD']", "token = tokenizer(text)", "eos_token='<end>'", "def connect(password: str = ''):",
     "secret = secrets.token_hex(8)", "password='${PASSWORD}'", "sha256 = '" + "e3b0c44298fc1c14" * 4 + "'",
     "api_key: str | None = None"],
)  # fmt: skip
def test_code_that_only_speaks_of_keys_is_taken(line):
    assert leaks.kind_of("pkg/a.py", line) is None


def test_this_projects_own_files_would_be_taken():
    names = git(ROOT, "ls-files", "-z", "salad", "store", "workbench", "tests").split(b"\0")
    results = []
    for name in (os.fsdecode(name) for name in names if name.endswith((b".py", b".md", b".toml"))):
        lines = (ROOT / name).read_text().split("\n") if (ROOT / name).exists() else []
        results += [f"{name}:{number} {kind}" for number, line in enumerate(lines, 1) if (kind := leaks.kind_of(name, line))]
    assert not results


def test_a_launch_names_what_is_taken_and_what_is_not(project, tmp_path, monkeypatch):
    (project / "pkg/new.py").write_text("b = 1\n")
    (project / "secrets.toml").write_text("x = 1\n")
    monkeypatch.setattr(codesync, "ROOT", project)
    folder = RunFolder.get_or_create(tmp_path / "lab", "stage1", "tiny", {"steps": 1})
    plan = launch_run(folder, "here", Target(engine="here"), module="tests.tiny_run", dry_run=True)
    lines = ["new code files taken: pkg/new.py", "untracked files left out (git add what the run needs): secrets.toml"]
    assert all(line in plan for line in lines)
    started = launch_run(folder, "here", Target(engine="here"), module="tests.tiny_run")
    started.wait(60)
    assert all(line in started.logs() for line in lines)
    recorded = json.loads((folder.path / "launch.json").read_text())["code"]
    assert recorded["new"] == ["pkg/new.py"] and recorded["left_out"] == ["secrets.toml"]
    assert not [path for path in (tmp_path / "lab").rglob("*") if path.is_file() and b"x = 1" in path.read_bytes()]


def test_the_recorded_code_of_this_project_can_be_laid_out_again(run, tmp_path):
    code = codesync.record(run)
    folder = codesync.restore(run, code, tmp_path / "code")
    for name in ("salad/engines/sky.py", "launch_gpu.py", "pyproject.toml"):
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert not (folder / ".venv").exists() and not (folder / ".git").exists()


def test_a_target_names_secrets_and_does_not_hold_them(tmp_path):
    value = "hf_" + "aBcD" * 8
    bucket = "s3://me:" + value + "@bucket/x"
    for fields, words in (
        ({"env": (f"HF_TOKEN={value}",)}, "HF_TOKEN is not a name alone"),
        ({"env": (value + "-",)}, "one of them"),
        ({"bucket": bucket}, "before an @"),
    ):
        with pytest.raises(ValueError, match=words):
            Target(engine="sky", **fields)
        path = tmp_path / "targets.toml"
        path.write_text("[box]\nengine = 'sky'\n" + "".join(f"{key} = {json.dumps(item)}\n" for key, item in fields.items()))
        from salad.engines import targets

        with pytest.raises(SaladError, match=words) as caught:
            targets.read(path)
        assert value not in str(caught.value)


def test_a_bundle_carries_what_a_run_made_and_nothing_of_where_and_how_it_ran(tmp_path):
    lab = tmp_path / "lab"
    run = RunFolder.get_or_create(lab, "stage1", "tiny", {"steps": 1})
    run.status(state="done")
    run.metrics_writer(0).log(1, 10, loss=1.0)
    listed = {"step": 1, "sha256": {"model/adapter.json": hashlib.sha256(b"{}").hexdigest()}}
    made = {
        "checkpoints/step-1/manifest.json": json.dumps(listed),
        "checkpoints/step-1/model/adapter.json": "{}",
        "packages.txt": "torch==2\n",
    }
    own = {"log.txt": "HUSH", "code.diff": "HUSH", "launch.json": '{"target": "HUSH"}', "ssh.json": "HUSH", "sky.yaml": "HUSH",
           "supervisor.json": "HUSH", "slurm/1.sh": "HUSH", "code/salad/x.py": "HUSH", "code/config.json": "HUSH",
           "attempts.jsonl": "HUSH"}  # fmt: skip
    for name, text in (made | own).items():
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(text)
    store.export(lab, run.run_id, tmp_path / "bundle")
    carried = contents(tmp_path / "bundle" / "runs" / run.run_id)
    assert set(carried) == {"config.json", "status.json", "metrics-0.jsonl", *made}
    assert not [path for path in (tmp_path / "bundle").rglob("*") if path.is_file() and b"HUSH" in path.read_bytes()]
    (tmp_path / "bundle" / "runs" / run.run_id / "log.txt").write_text("HUSH")  # a bundle that was made before
    store.import_(tmp_path / "other", tmp_path / "bundle")
    assert set(contents(tmp_path / "other" / "runs" / run.run_id)) == set(carried)
