"""Each side of the house stays free of the other's packages: proved in fresh interpreters."""

import json
import pkgutil
import subprocess
import sys

import pytest

import workbench

MODEL_LIBRARIES = ("torch", "transformers", "triton", "tokenizers", "datasets", "fastapi")
SCREEN_LIBRARIES = ("textual", "rich")
# Imported on a GPU alone: Triton comes with torch's CUDA builds.
NEED_TRITON = ("_triton", "fused_kernels", "triton_programs")
WORKER_PACKAGES = ("data", "model", "training", "inference")
USER_PACKAGES = ("cli", "tui", "jobs")


def modules_of(*packages: str) -> list[str]:
    names = [
        module.name
        for module in pkgutil.walk_packages(workbench.__path__, prefix="workbench.")
        if module.name.split(".")[1] in packages
        and not module.name.endswith(("__main__", *NEED_TRITON))
    ]
    assert names, f"no modules found in {packages}"
    return names


def loaded_by(modules: list[str]) -> set[str]:
    """Import modules in a fresh interpreter; give the names of everything it then holds."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


CASES = {
    "the common ground": (
        ("config", "runs", "control", "errors"),
        (*MODEL_LIBRARIES, *SCREEN_LIBRARIES, "numpy", "httpx"),
        (*USER_PACKAGES, *WORKER_PACKAGES, "supervisor"),
    ),
    "the supervisor": (
        ("supervisor",),
        (*MODEL_LIBRARIES, *SCREEN_LIBRARIES, "numpy", "httpx", "yaml"),
        (*USER_PACKAGES, *WORKER_PACKAGES),
    ),
    "the command line and the jobs": (
        ("cli", "jobs"),
        (*MODEL_LIBRARIES, "numpy"),
        (*WORKER_PACKAGES, "supervisor"),
    ),
    "the screens": (("tui",), MODEL_LIBRARIES, (*WORKER_PACKAGES, "supervisor")),
    "the workers": (WORKER_PACKAGES, ("textual",), (*USER_PACKAGES, "supervisor")),
    "data preparation": (("data",), ("textual", "rich", "torch", "transformers"), USER_PACKAGES),
    "training": (("data", "model", "training"), ("textual", "rich", "fastapi"), USER_PACKAGES),
}


@pytest.mark.parametrize("case", CASES)
def test_a_side_never_loads_what_belongs_to_the_other(case: str) -> None:
    packages, forbidden, strangers = CASES[case]
    loaded = loaded_by(modules_of(*packages))
    assert any(name.startswith("workbench.") for name in loaded)
    assert not loaded.intersection(forbidden)
    assert not loaded.intersection(f"workbench.{stranger}" for stranger in strangers)


def test_the_command_table_loads_no_command() -> None:
    loaded = loaded_by(["workbench.cli.main"])
    assert "workbench.cli.main" in loaded
    assert not loaded.intersection({"textual", "rich", "httpx", "numpy", "tqdm", "yaml"})
