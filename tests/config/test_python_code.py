"""A config as a program: its text, before anything runs it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.configs_on_disk import write_configs
from workbench.cli.main import main
from workbench.config.checks import refused_at_start
from workbench.config.find import shipped_configs
from workbench.config.load import ResolvedConfig, list_configs, parse_overrides, resolve
from workbench.config.problems import ConfigProblems
from workbench.config.python_code import literal, python_code
from workbench.config.schema.data import DataSection, SourceSection
from workbench.config.schema.keys import all_keys

NAMED = (
    f"model.path={shipped_configs() / 'demo' / 'model'}",
    f"data.sources.poems.path={shipped_configs() / 'demo' / 'conversations.json'}",
)

FAR = "/a/folder/far/down/" + "the-road-goes-ever-on-and-on/" * 3

HARD = {
    "configs/hard \"quoted\" 'name'.yaml": f"""
        description: |
          says "hello"; a path C:\\new, three quotes \"\"\" and so much more that no line of
          eighty-eight columns could ever hold the whole of this description as it stands
        model: {{path: "{FAR}model", weights: load}}
        data:
          sources:
            "it's here": {{path: "{FAR}data.json", weight: 0.5}}
            plain: {{path: owner/name, split: train, format: messages}}
            several:
              path: "{FAR}folder"
              files: [first part of the data.json, second part of the data.json, third part.json]
          chat_template: "{FAR}template.jinja"
          roles: {{narrator: system, the other speaker: user, the one that answers: assistant}}
          pad_to: context
        optimizer: {{learning_rate: 4e-6, clip_by: previous_norm, cooldown_steps: 7}}
        memory: {{budget_gib: 22.8}}
        training: {{output_dir: "{FAR}output", nonfinite: skip, device: cuda, max_steps: 1000}}
        logging: {{every_steps: 25, name: "{FAR}"}}
        checkpoints: {{resume: "{FAR}checkpoint-5", save_strategy: epoch}}
    """,
}


def startable() -> Iterator[ResolvedConfig]:
    """Every shipped config that this version can start, with a model where it leaves that open."""
    for listing in list_configs():
        resolved = resolve(listing.name)
        if refused_at_start(resolved.config):
            resolved = resolve(listing.name, overrides=parse_overrides(NAMED))
        if not refused_at_start(resolved.config):
            yield resolved


@pytest.fixture
def hard(tmp_path: Path) -> ResolvedConfig:
    project = write_configs(tmp_path, HARD)
    (name,) = [each.name for each in list_configs(project) if each.name.startswith("hard")]
    return resolve(name, project=project)


def ruff(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_text_is_as_ruff_leaves_it_at_any_usual_width(
    hard: ResolvedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    variants = (
        "evaluation.every_steps=0",
        "checkpoints.save_strategy=no",
        "training.nonfinite=skip",
        "logging.every_steps=7",
        "training.output_dir=here",
    )
    demos = [resolve("demo", overrides=parse_overrides([each])) for each in variants]
    configs = [*startable(), *demos, hard]
    assert {"demo", "1gpu_llama_7b/default", "1gpu_llama_7b/packed"} <= {
        each.name for each in configs
    }
    for number, resolved in enumerate(configs):
        text = python_code(resolved)
        compile(text, resolved.name, "exec")
        (folder / f"run_{number}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)  # seen from elsewhere workbench is a package like any other
    ruff("format", "--isolated", "--check", "--line-length", "88", folder)
    ruff("format", "--isolated", "--check", "--line-length", "100", folder)
    rules = "E4,E7,E9,W,F,I,N,UP,B,C4,SIM,RET,D,ANN,PTH,RUF"
    ruff("check", "--isolated", "--select", rules, "--ignore", "D203,D213,RUF001,RUF002", folder)


def data_in(text: str) -> DataSection:
    """The data section that a program makes."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "DataSection"
    ]
    names = {
        "DataSection": DataSection,
        "SourceSection": SourceSection,
        "shipped_configs": shipped_configs,
        "str": str,
    }
    found = eval(ast.unparse(call), {"__builtins__": {}}, names)
    assert isinstance(found, DataSection)
    return found


def keywords_in(text: str) -> dict[str, object]:
    """Every keyword argument that is written out."""
    return {
        node.arg: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.keyword)
        and node.arg is not None
        and isinstance(node.value, ast.Constant)
    }


def test_the_values_in_the_program_are_those_of_the_config(hard: ResolvedConfig) -> None:
    for resolved in (*startable(), hard):
        text = python_code(resolved)
        data, made = resolved.config.data, data_in(text)
        given = {name: source for name, source in data.sources.items() if source is not None}
        assert made.sources == given
        assert made == DataSection(**{**as_fields(data), "sources": given, "chat_template": "auto"})
        assert repr(data.chat_template).strip("'") in text
        keywords = keywords_in(text)
        assert keywords["peak"] == resolved.config.optimizer.learning_rate
        assert keywords["cooldown_steps"] == resolved.config.optimizer.cooldown_steps
        assert keywords["epochs"] == resolved.config.training.epochs
        assert keywords["keep"] == resolved.config.checkpoints.keep


def as_fields(data: DataSection) -> dict[str, object]:
    return {name: getattr(data, name) for name in data.__struct_fields__}


NOTE = re.compile(r"# ([a-z_]+\.[\w.]+), (\S+):(\d+)")


def test_each_note_names_the_file_and_line_that_state_the_value() -> None:
    text = python_code(resolve("demo", overrides=parse_overrides(["training.seed=7"])))
    notes = [
        (key, place, int(line))
        for each in text.splitlines()
        for part in each.split("; ")
        for key, place, line in NOTE.findall(part if part.lstrip().startswith("#") else "# " + part)
    ]
    assert len(notes) > 30
    for key, place, line in notes:
        stated = (shipped_configs() / place).read_text("utf-8").splitlines()[line - 1]
        assert key.rsplit(".", 1)[-1] in stated, (key, place, line)
    assert "seed = 7  # training.seed, key=value" in text
    assert "base/training.yaml" in {place for _, place, _ in notes}


# Keys with one value that can be started, or with nothing to do in one process, or by which
# nothing is learned.
NOT_WRITTEN = {
    "description",
    "pipeline.ranks",
    "pipeline.schedule",
    "pipeline.stages_per_rank",
    "pipeline.replicas",
    "checkpoints.save_on_each_node",
    "samples.prompts",
    "samples.every_steps",
    "samples.max_tokens",
    "samples.temperature",
    "training.engine",
}


def test_every_key_that_a_start_heeds_is_in_the_program() -> None:
    variants = ([], ["optimizer.clip_by=previous_norm", "training.output_dir=here"])
    texts = [python_code(resolve("demo", overrides=parse_overrides(each))) for each in variants]
    written = {key for key in all_keys() if any(f"{key}, " in text for text in texts)}
    assert set(all_keys()) - written - {"data.sources"} == NOT_WRITTEN


@pytest.mark.parametrize(
    ("override", "there", "gone"),
    [
        ("evaluation.every_steps=0", ["EvaluationSection(every_steps=0)"], ["evaluate_batches"]),
        ("evaluation.every_steps=0", ["EvaluationSection("], ["validation =", "note_evaluation"]),
        ("checkpoints.save_strategy=no", [], ["checkpoint.save", "prune(", "note_evaluation"]),
        ("checkpoints.save_strategy=epoch", ["% rows.steps_per_epoch == 0"], ["% 50"]),
        ("training.nonfinite=skip", ["fault.skipped"], ["parser.exit"]),
        ("model.weights=load", ["load_first_weights(model_folder,"], ["draw_first_weights"]),
        ("optimizer.clip_by=previous_norm", ["clip_norm=1.0,"], ["clip_norm=None"]),
        ("logging.every_steps=10", ["number % 10 == 0 or number == max_steps or faults"], []),
        ("data.pad_to=context", ["row_length=256,"], ["row_length=None", "prepared.train.longest"]),
        ("training.device=cuda", ['torch.device("cuda:0")'], ["is_available"]),
    ],
)  # fmt: skip
def test_the_program_holds_what_its_config_needs_and_no_more(
    override: str, there: Sequence[str], gone: Sequence[str]
) -> None:
    before = python_code(resolve("demo"))
    text = python_code(resolve("demo", overrides=parse_overrides([override])))
    for words in there:
        assert words in " ".join(text.split()), words
        assert words not in " ".join(before.split()), words
    for words in gone:
        assert words not in text, words
        assert words in before, words


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(values)
def test_a_literal_reads_back_as_its_value(value: object) -> None:
    assert ast.literal_eval(literal(value)) == value
    assert ast.literal_eval(literal(value, "")) == value


def test_a_config_that_cannot_be_started_is_refused_with_key_line_and_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["code", "-t", "demo_pipeline"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.search(
        r"demo_pipeline\.yaml:\d+ training\.engine: .* is not in this version; ", told.err
    )
    with pytest.raises(ConfigProblems) as caught:
        python_code(resolve("1gpu_llama_7b/default"))
    assert "model.path: no model is named" in str(caught.value)


def test_code_writes_the_whole_program_where_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["code", "-t", "demo", "--lr", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "peak=0.5,  # optimizer.learning_rate, flag --lr" in shown
    target = tmp_path / "run.py"
    assert main(["code", "-t", "demo", "--lr", "0.5", "-o", str(target)]) == 0
    assert target.read_text("utf-8") == shown
    assert [each.name for each in tmp_path.iterdir()] == ["run.py"]


def test_code_opens_in_the_editor_as_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\nbasename "$1" > {tmp_path}/name\ncp "$1" {tmp_path}/seen\n')
    editor.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("VSCODE_IPC_HOOK_CLI", raising=False)
    monkeypatch.setenv("EDITOR", str(editor))
    assert main(["code", "-t", "demo", "-e"]) == 0
    assert (tmp_path / "name").read_text() == "demo.py\n"
    assert (tmp_path / "seen").read_text("utf-8") == python_code(resolve("demo"))
