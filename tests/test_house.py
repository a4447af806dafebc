"""The house's rules: imports go one way, the light packages stay light, notebooks stay thin."""

import ast
import subprocess
import sys
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "store": {"store"},
    "salad": {"store", "salad"},
    "workbench": {"store", "salad", "workbench", "launch_gpu"},
    "notebooks": {"store", "salad", "workbench", "launch_gpu"},
}
OURS = {"store", "salad", "workbench", "notebooks", "launch_gpu", "tests", "benchmarks"}
FORBIDDEN = {
    "store": {"torch", "transformers", "marimo", "gradio", "altair"},
    "salad": {"marimo", "gradio", "altair", "anywidget"},
}


def imported(path: Path):
    """(line, top-level package) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    results = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in imported(path)
        if (name in OURS and name not in MAY_IMPORT[package]) or name in FORBIDDEN.get(package, ())
    ]
    assert not results, "\n".join(results)


@pytest.mark.parametrize("module", ["store", "salad", "salad.recipes", "salad.config", "workbench.cli"])
def test_light_modules_do_not_load_torch(module):
    completed = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print('torch' in sys.modules or 'transformers' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout.strip() == "False"


def test_what_a_notebook_looks_with_does_not_wait_for_scipy():
    """scikit-learn and scipy take a second of a notebook's first paint."""
    modules = "salad.selection, workbench.charts, workbench.listening, workbench.panels, workbench.review"
    completed = subprocess.run([sys.executable, "-c", f"import sys, {modules}; print({{'sklearn', 'scipy'}} & set(sys.modules))"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert completed.stdout.strip() == "set()"


WITHOUT_WEIGHTS = {"AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoFeatureExtractor", "WhisperFeatureExtractor"}
OUR_OWN = {"SpeechLM", "cls", "PeftModel"}  # peft looks for safetensors first, and opens nothing else than tensors


def test_weights_are_read_from_safetensors_alone():
    safe, other = [], []
    for path in sorted((ROOT / "salad").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".from_pretrained")):
                continue
            if ast.unparse(call.func.value).removeprefix("transformers.") not in WITHOUT_WEIGHTS | OUR_OWN:
                result = "use_safetensors=True" in [ast.unparse(keyword) for keyword in call.keywords]
                (safe if result else other).append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not other and len(safe) >= 6


def test_notebooks_are_thin():
    long = {p.name: n for p in (ROOT / "notebooks").glob("*.py") if (n := len(p.read_text().splitlines())) > 200}
    assert not long


def test_no_large_file_no_weights_and_no_path_of_a_machine_is_tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    tracked = [ROOT / name for name in names if name and (ROOT / name).exists()]
    assert not [p for p in tracked if p.stat().st_size > 1_500_000]
    assert not [p for p in tracked if p.suffix in (".safetensors", ".bin", ".pt", ".pkl", ".wav", ".mp3")]
    here = str(ROOT.parent) + "/"
    assert not [p for p in tracked if p.suffix in (".py", ".md", ".toml", ".json") and here in p.read_text()]


def test_every_dependency_names_a_range_that_holds_what_is_installed():
    """From the version that was tried to the next that may break: what runs here is what the range promises."""
    import importlib.metadata
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    without, outside = [], []
    for requirement in map(Requirement, project["dependencies"]):
        bounds = {specifier.operator for specifier in requirement.specifier}
        if not (bounds & {">=", "==", "~="} and bounds & {"<", "==", "~="}):
            without.append(str(requirement))
        installed = importlib.metadata.version(requirement.name)
        if not requirement.specifier.contains(installed.partition("+")[0]):
            outside.append(f"{requirement}: {installed}")
    assert not without and not outside


def test_no_modules_import_each_other_in_a_circle():
    assert house.circles() == []


def test_no_module_uses_a_private_name_of_another():
    assert house.private_uses() == []


def test_a_long_module_says_in_its_first_lines_why_it_is_long():
    """Past 500 lines a module is split, or its docstring says `Long because …`."""
    unexplained = {}
    for name, (path, tree) in house.modules().items():
        n_lines = len(path.read_text().splitlines())
        if n_lines > 500 and "Long because" not in (ast.get_docstring(tree) or ""):
            unexplained[name] = n_lines
    assert not unexplained


def test_a_class_name_stands_for_one_thing():
    assert {name: where for name, where in house.classes().items() if len(where) > 1} == {}
