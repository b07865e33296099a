"""``extends:``: what wins, where each value comes from, and chains that lead nowhere."""

from pathlib import Path

import pytest

from tests.config.configs_on_disk import write_configs
from workbench.config.hub_id import model_name
from workbench.config.load import (
    ConfigProblems,
    Origin,
    Overridden,
    Override,
    Problem,
    parse_overrides,
    resolve,
)

THREE_FILES = {
    "configs/base/bottom.yaml": """
        optimizer:
          learning_rate: 5e-6
          warmup_steps: 200
        data:
          max_length: 4096
          sources:
            poems: {path: poems.json}
            letters:
              path: letters.json
              files: []
        args:
          --lr: optimizer.learning_rate
    """,
    "configs/base/middle.yaml": """
        extends: bottom.yaml
        optimizer:
          learning_rate: 4e-6
        data:
          sources:
            letters: null
    """,
    "configs/top.yaml": """
        extends: base/middle.yaml
        optimizer: {learning_rate: 3.5e-6}
        data: {split_at: [0.5, 0.75]}
    """,
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_configs(tmp_path, THREE_FILES)


def problems_of(name: str, project: Path, *overrides: Override) -> list[Problem]:
    with pytest.raises(ConfigProblems) as caught:
        resolve(name, project=project, overrides=overrides)
    return caught.value.problems


def test_a_leaf_knows_every_file_of_its_chain_nearest_first(project: Path) -> None:
    resolved = resolve(
        "top",
        project=project,
        overrides=[Override("optimizer.learning_rate", 3e-6, "flag --lr")],
    )
    leaf = resolved.leaves["optimizer.learning_rate"]
    configs = project / "configs"
    assert leaf.value == resolved.config.optimizer.learning_rate == 3e-6
    assert leaf.origin == Origin("flag --lr")
    assert leaf.overrode == (
        Overridden(3.5e-6, Origin("top.yaml:2", configs / "top.yaml", 2)),
        Overridden(4e-6, Origin("base/middle.yaml:3", configs / "base/middle.yaml", 3)),
        Overridden(5e-6, Origin("base/bottom.yaml:2", configs / "base/bottom.yaml", 2)),
    )
    assert resolved.leaves["optimizer.warmup_steps"].origin.source == "base/bottom.yaml:3"
    assert resolved.leaves["data.split_at"].origin.line == 3
    assert resolved.leaves["training.seed"].origin == Origin("default")


def test_mappings_merge_lists_replace_and_null_drops_a_data_source(project: Path) -> None:
    config = resolve("top", project=project).config
    assert config.data.max_length == 4096
    assert config.data.split_at == [0.5, 0.75]
    assert list(config.data.sources) == ["poems"]
    assert not any("letters" in key for key in resolve("top", project=project).leaves)


def test_a_dropped_data_source_can_be_named_anew(project: Path) -> None:
    overrides = parse_overrides(["data.sources.letters.path=/new.json"])
    sources = resolve("top", project=project, overrides=overrides).config.data.sources
    assert sources["letters"] is not None
    assert sources["letters"].path == "/new.json"


def test_the_tree_counts_keys_and_what_was_replaced(project: Path) -> None:
    top = resolve("top", project=project).files
    (middle,) = top.parents
    (bottom,) = middle.parents
    assert [node.path.name for node in (top, middle, bottom)] == [
        "top.yaml",
        "middle.yaml",
        "bottom.yaml",
    ]
    assert (top.num_keys, top.num_shadowed) == (2, 0)
    # The source that middle drops is no key of the resolved config, nor is what it took away.
    assert (middle.num_keys, middle.num_shadowed) == (2, 2)
    assert (bottom.num_keys, bottom.num_shadowed) == (6, 3)


def test_of_several_bases_the_later_wins(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "configs/a.yaml": "batch: {train: 1, evaluation: 1}",
            "configs/b.yaml": "batch: {train: 2}",
            "configs/c.yaml": "extends: [a.yaml, b.yaml]",
        },
    )
    resolved = resolve("c", project=tmp_path)
    assert (resolved.config.batch.train, resolved.config.batch.evaluation) == (2, 1)
    assert [each.value for each in resolved.leaves["batch.train"].overrode] == [1]


def test_two_bases_that_share_a_third_do_not_undo_each_other(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "configs/shared.yaml": "batch: {train: 1, evaluation: 1}",
            "configs/a.yaml": "extends: shared.yaml\nbatch: {train: 7}",
            "configs/b.yaml": "extends: shared.yaml\nbatch: {evaluation: 9}",
            "configs/c.yaml": "extends:\n  - a.yaml\n  - b.yaml\n",
            "configs/d.yaml": "extends:\n  - a.yaml\n  - shared.yaml\n",
        },
    )
    batch = resolve("c", project=tmp_path).config.batch
    assert (batch.train, batch.evaluation) == (7, 9)
    (problem,) = problems_of("d", tmp_path)
    assert problem.line == 3
    assert "could change nothing" in problem.what


def test_a_circle_is_shown_whole(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "configs/a.yaml": "description: a\nextends: b.yaml\n",
            "configs/b.yaml": "extends: [c.yaml]",
            "configs/c.yaml": "extends: a.yaml",
            "configs/self.yaml": "extends: self.yaml",
        },
    )
    (problem,) = problems_of("a", tmp_path)
    assert (problem.file, problem.line) == (tmp_path / "configs/c.yaml", 1)
    assert "circle" in problem.what
    shown = [part.rsplit("/", 1)[-1] for part in problem.what.split(" → ")]
    assert shown == ["a.yaml", "b.yaml", "c.yaml", "a.yaml"]
    assert "circle" in problems_of("self", tmp_path)[0].what


def test_a_missing_base_is_named_with_the_chain_that_leads_to_it(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "configs/a.yaml": "extends: b.yaml\nbatch: {trian: 2}",
            "configs/b.yaml": "batch: {train: 3}\nextends:\n  - nowhere.yaml\n",
        },
    )
    typo, missing = problems_of("a", tmp_path)
    assert typo.key == "batch.trian"
    assert (missing.file, missing.line, missing.key) == (tmp_path / "configs/b.yaml", 3, "extends")
    assert "nowhere.yaml is not there" in missing.what
    assert "a.yaml → " in missing.what
    assert "b.yaml leads here" in missing.what


def test_a_project_extends_a_shipped_config_by_its_name(tmp_path: Path) -> None:
    write_configs(tmp_path, {"configs/mine.yaml": "extends: base/training.yaml"})
    resolved = resolve("mine", project=tmp_path)
    assert resolved.leaves["training.seed"].origin.source.startswith("base/training.yaml:")


@pytest.mark.parametrize("value", ["7", "[1]", "{a: b}", "''", "[a.yaml, '']", "null"])
def test_extends_takes_files_and_nothing_else(tmp_path: Path, value: str) -> None:
    write_configs(tmp_path, {"configs/a.yaml": f"description: a\nextends: {value}\n"})
    (problem,) = problems_of("a", tmp_path)
    assert (problem.key, problem.line) == ("extends", 2)


def test_paths_are_relative_to_the_file_that_states_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("MODELS_DIR", "/models")
    write_configs(
        tmp_path,
        {
            "configs/base/b.yaml": """
                model: {path: ../models/tiny}
                data:
                  chat_template: own.jinja
                  sources:
                    one: {path: one.json, files: [x.json]}
                    two: {path: ~/two}
                    three: {path: "${MODELS_DIR}/three"}
                training: {output_dir: ../../out}
                checkpoints: {resume: there/checkpoint-3}
            """,
            "configs/a.yaml": "extends: base/b.yaml",
        },
    )
    config = resolve("a", project=tmp_path).config
    base = tmp_path / "configs/base"
    assert config.model.path == str(tmp_path / "configs/models/tiny")
    assert config.data.chat_template == str(base / "own.jinja")
    assert {name: source.path for name, source in config.data.sources.items() if source} == {
        "one": str(base / "one.json"),
        "two": "/home/somebody/two",
        "three": "/models/three",
    }
    assert config.training.output_dir == str(tmp_path / "out")
    assert config.checkpoints.resume == str(base / "there/checkpoint-3")
    overrides = parse_overrides(
        ["model.path=~/m", "training.output_dir=$MODELS_DIR/run", "data.sources.one.path=x.json"]
    )
    config = resolve("a", project=tmp_path, overrides=overrides).config
    assert config.model.path == "/home/somebody/m"
    assert config.training.output_dir == "/models/run"
    assert config.data.sources["one"] is not None
    assert config.data.sources["one"].path == str(here / "x.json")
    assert config.data.sources["one"].files == ["x.json"]


def test_a_data_path_that_is_not_there_may_be_an_id_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_configs(
        tmp_path,
        {
            "configs/a.yaml": """
                data:
                  sources:
                    hub: {path: owner/some-data_1.0}
                    here: {path: letters/one.json}
                    folder: {path: letters/more}
                    dotted: {path: ./owner/name}
                    deep: {path: owner/name/file.json}
                    file: {path: name.json}
                model: {path: owner/model}
            """,
            "configs/letters/one.json": "[]",
            "configs/letters/more/two.json": "[]",
        },
    )
    monkeypatch.chdir(tmp_path)
    config = resolve("a", project=tmp_path).config
    configs = tmp_path / "configs"
    assert {name: source.path for name, source in config.data.sources.items() if source} == {
        "hub": "owner/some-data_1.0",
        "here": str(configs / "letters/one.json"),
        "folder": str(configs / "letters/more"),
        "dotted": str(configs / "owner/name"),
        "deep": str(configs / "owner/name/file.json"),
        "file": str(configs / "name.json"),
    }
    assert config.model.path == str(configs / "owner/model"), "only data is named by hub ids"
    overrides = parse_overrides(["data.sources.hub.path=other/data"])
    source = resolve("a", project=tmp_path, overrides=overrides).config.data.sources["hub"]
    assert source is not None
    assert source.path == "other/data"
    write_configs(tmp_path, {"other/data": "here after all"})
    source = resolve("a", project=tmp_path, overrides=overrides).config.data.sources["hub"]
    assert source is not None
    assert source.path == str(tmp_path / "other/data")


def test_a_role_that_is_called_like_a_key_of_a_path_is_no_path(tmp_path: Path) -> None:
    write_configs(tmp_path, {"configs/a.yaml": "data: {roles: {path: user, resume: assistant}}"})
    roles = resolve("a", project=tmp_path).config.data.roles
    assert roles == {"path": "user", "resume": "assistant"}


def test_words_that_are_no_paths_stay_words(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "configs/a.yaml": "data: {chat_template: chatml}\ncheckpoints: {resume: no}",
            "configs/b.yaml": "data: {chat_template: mine}",
            "configs/c.yaml": "data: {chat_template: chatmll}",
            "chat_templates/mine.jinja": "",
        },
    )
    config = resolve("a", project=tmp_path).config
    assert (config.data.chat_template, config.checkpoints.resume) == ("chatml", "no")
    own = resolve("b", project=tmp_path).config.data.chat_template
    assert own == str(tmp_path / "chat_templates/mine.jinja")
    (problem,) = problems_of("c", tmp_path)
    assert problem.remedy == "did you mean chatml?"


def test_a_variable_that_is_not_set_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    write_configs(
        tmp_path,
        {
            "configs/a.yaml": """
                extends: $NO_SUCH_FOLDER/b.yaml
                model: {path: "$NO_SUCH_FOLDER/model"}
                training: {output_dir: "~no-such-user/out"}
            """
        },
    )
    extends, model, output = problems_of("a", tmp_path)
    assert extends.what == model.what == "the variable $NO_SUCH_FOLDER is not set"
    assert (model.key, model.line) == ("model.path", 2)
    assert "~no-such-user" in output.what


def test_a_model_that_the_hubs_own_tool_has_downloaded_is_named_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    repository = tmp_path / "hf" / "hub" / "models--owner--small-1.0"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    write_configs(tmp_path, {"configs/a.yaml": "model: {path: owner/small-1.0}"})
    beside = str(tmp_path / "configs" / "owner" / "small-1.0")
    assert resolve("a", project=tmp_path).config.model.path == beside, "nothing is downloaded yet"
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    resolved = resolve("a", project=tmp_path)
    assert resolved.config.model.path == str(snapshot)
    assert resolved.leaves["model.path"].origin.line == 1
    flag = [Override("model.path", "owner/small-1.0", "flag --model")]
    assert resolve("demo", overrides=flag).config.model.path == str(snapshot)
    assert model_name(snapshot) == "owner/small-1.0"
    assert model_name(tmp_path / "models" / "small") == "small"
    (tmp_path / "configs" / "owner" / "small-1.0").mkdir(parents=True)
    assert resolve("a", project=tmp_path).config.model.path == beside, "a folder comes first"
