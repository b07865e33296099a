"""An installed workbench finds its configs, templates and demo without the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that holds what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=REPOSITORY, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = folder.glob("workbench-*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run_installed(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench", *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_the_demo_is_listed_and_resolves_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    listed = run_installed(installed, "ls", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "demo" in listed.stdout
    shown = run_installed(installed, "show", "-t", "demo.yaml", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert str(installed) in shown.stdout
    assert str(REPOSITORY) not in shown.stdout


def test_an_installed_workbench_completes_and_makes_configs(
    installed: Path, tmp_path: Path
) -> None:
    words = ("zsh", "3", "workbench", "show", "-t", "dem")
    completed = run_installed(installed, "__complete", *words, cwd=tmp_path)
    assert "demo" in completed.stdout.splitlines(), completed.stderr
    made = run_installed(installed, "new", "-t", "demo", "mine", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "configs" / "mine.yaml").read_text()
    assert f"$schema={installed}" in text
    assert "\nextends: demo.yaml\n" in text


@pytest.mark.parametrize(
    "name",
    [
        "configs/demo.yaml",
        "configs/demo/conversations.json",
        "configs/schema.json",
        "chat_templates/chatml.jinja",
    ],
)
def test_the_wheel_carries_what_the_demo_and_editors_need(installed: Path, name: str) -> None:
    assert (installed / "workbench" / "shipped" / name).is_file()


def test_the_wheel_asks_for_torch_without_an_upper_bound(installed: Path) -> None:
    (metadata,) = installed.glob("workbench-*.dist-info/METADATA")
    needs = [
        line
        for line in metadata.read_text().splitlines()
        if line.startswith(("Requires-Dist: torch ", "Requires-Dist: torch>"))
    ]
    assert needs == ["Requires-Dist: torch>=2.11"]
