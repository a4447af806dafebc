"""The face of the package: the names that a script needs, imported when they are first used."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import salad


def run(*words: str) -> str:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout.strip()


def test_every_name_of_the_face_is_what_its_module_defines():
    for name, module in salad.FACE.items():
        value = getattr(salad, name)
        assert value.__name__ == name and value.__module__.startswith(module), name
    assert set(salad.FACE) <= set(dir(salad)) and set(salad.__all__) <= set(dir(salad))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'speechlm'"):
        salad.speechlm  # noqa: B018
    with pytest.raises(ImportError, match="speechlm"):
        from salad import speechlm  # noqa: F401


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"torch", "transformers", "pydantic", "pandas", "pyarrow.dataset"}
    loaded = run("-c", f"import sys, salad; print({heavy} & set(sys.modules))")
    assert loaded == "set()"


def test_the_version_is_the_distribution_s():
    assert salad.__version__ == version("salad-workbench")
    assert run("-m", "workbench.cli", "--version") == f"salad {salad.__version__}"
