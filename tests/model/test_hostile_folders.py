"""Every damaged folder is refused at every door: what, where, remedy; no hang, no code run."""

import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch

from tests.inference.tiny_model import write_tiny_model
from tests.model.hostile_folders import CONFIG, TEXTS, WEIGHTS
from workbench.config.model_facts import read_model_facts
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import WorkbenchError
from workbench.inference.__main__ import read_context, weight_bytes
from workbench.inference.load import load_model
from workbench.inference.prompt import read_prompt_writer
from workbench.model.conversion_plan import Wish, plan_conversion
from workbench.model.convert import convert
from workbench.model.families import read_dimensions
from workbench.model.finalize import finalize
from workbench.model.weights import read_weights

Door = Callable[[Path], object]

LONGEST_SECONDS = 30
LARGEST_GROWTH = 500 << 20

# Nothing is ever extracted, so names in an archive lead nowhere; the tensors are those they were.
HARMLESS = {"archive's names climb out"}
# An index may go on naming a tied head that its shard has not.
HARMLESS_NAMES = {"index names a tensor that is nowhere"}


def loads(folder: Path) -> None:
    """As a training run does."""
    read_weights(folder, read_dimensions(folder), torch.float32)


def converts(folder: Path) -> None:
    convert(plan_conversion(folder, Wish(dtype=torch.bfloat16)), folder.parent / "made")


def publishes(folder: Path) -> None:
    finalize([folder], folder.parent / "made")


def serves(folder: Path) -> None:
    """As ``serve``, ``chat -m`` and the chat screen do, up to the first prompt."""
    read_context(folder)
    weight_bytes(folder)
    prompts = read_prompt_writer(folder, load_tokenizer(folder), None, [])
    prompts.ids([("user", "Hello")])
    load_model(folder, "cpu", "auto")


DOORS: dict[str, Door] = {
    "load": loads,
    "convert": converts,
    "finalize": publishes,
    "serve": serves,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """End a test that waits, and fail one that takes memory for what a file merely says."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"nothing came of it within {LONGEST_SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < LARGEST_GROWTH


def damaged(sound: Path, into: Path, damage: Callable[[Path], None]) -> Path:
    folder = into / "model"
    shutil.copytree(sound, folder)
    damage(folder)
    return folder


def assert_refused(door: Door, folder: Path) -> None:
    with pytest.raises(WorkbenchError) as raised:
        door(folder)
    error = raised.value
    assert error.exit_status in (1, 2, 4)
    assert error.what
    assert error.where
    assert error.remedy
    assert "partial" not in str(error)  # what was being written is gone
    assert len(str(error)) < 2_000
    assert not (folder / "CODE_RAN").exists()
    assert {path.name for path in folder.parent.iterdir()} <= {
        "model",
        "model-outside",
        "model-outside.safetensors",
        "model-outside.bin",
    }


def test_the_sound_folder_passes_every_door(sound: Path, tmp_path: Path) -> None:
    read_model_facts(sound)
    for name, door in DOORS.items():
        folder = damaged(sound, tmp_path / name, lambda folder: None)
        door(folder)
        assert name not in ("convert", "finalize") or (folder.parent / "made").is_dir()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("damage", CONFIG)
def test_a_config_that_cannot_be_is_refused(
    sound: Path, tmp_path: Path, damage: str, door: str
) -> None:
    assert_refused(DOORS[door], damaged(sound, tmp_path, CONFIG[damage]))


@pytest.mark.parametrize("damage", CONFIG)
def test_a_config_that_cannot_be_is_refused_before_a_process_starts(
    sound: Path, tmp_path: Path, damage: str
) -> None:
    """So do train, its dry run, estimate, and the screens."""
    assert_refused(read_model_facts, damaged(sound, tmp_path, CONFIG[damage]))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("damage", [name for name in WEIGHTS if name not in HARMLESS_NAMES])
def test_weights_that_are_not_the_models_are_refused(
    sound: Path, tmp_path: Path, damage: str, door: str
) -> None:
    folder = damaged(sound, tmp_path, WEIGHTS[damage])
    if damage in HARMLESS and door in ("load", "convert"):
        DOORS[door](folder)
        assert {path.name for path in tmp_path.iterdir()} <= {"model", "made"}
        return
    assert_refused(DOORS[door], folder)


@pytest.mark.parametrize("door", ["convert", "finalize", "serve"])
@pytest.mark.parametrize("damage", TEXTS)
def test_texts_that_cannot_be_used_are_refused(
    sound: Path, tmp_path: Path, damage: str, door: str
) -> None:
    assert_refused(DOORS[door], damaged(sound, tmp_path, TEXTS[damage]))
