"""Every mistake at once, names of configs, listing, and what is written and read again."""

import math
import pickle
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.configs_on_disk import write_configs
from workbench.config.find import find_config, shipped_configs
from workbench.config.load import (
    ConfigProblems,
    Override,
    Problem,
    dump_config,
    list_configs,
    parse_overrides,
    read_resolved,
    resolve,
)
from workbench.config.schema.config import Config
from workbench.config.schema.data import DataSection, SourceSection
from workbench.config.schema.intervals import LoggingSection, SamplesSection
from workbench.config.schema.keys import all_keys

ASSETS = Path(__file__).parent.parent / "assets" / "config"


def problems_of(name: str, *overrides: Override) -> list[Problem]:
    with pytest.raises(ConfigProblems) as caught:
        resolve(name, overrides=overrides)
    return caught.value.problems


def test_mistakes_of_types_and_of_rules_are_shown_together(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "a.yaml": """
                batch: {train: none}
                optimizer:
                  clip_by: exact_norm
                  learning_rte: 1
                data: {split_at: [0.9, 0.5]}
            """
        },
    )
    assert [problem.key for problem in problems_of(str(tmp_path / "a.yaml"))] == [
        "batch.train",
        "optimizer.clip_by",
        "optimizer.learning_rte",
        "data.split_at",
    ]


def test_mistakes_of_several_files_come_file_by_file(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "base.yaml": "bach: {train: 1}",
            "a.yaml": "extends: base.yaml\n\n\ndescripton: x",
        },
    )
    problems = problems_of(str(tmp_path / "a.yaml"), Override("x.y", 1, "key=value"))
    assert [problem.place.rsplit("/", 1)[-1] for problem in problems] == [
        "a.yaml:4",
        "base.yaml:1",
        "key=value",
    ]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "key",
    ["optimizer.learning_rate", "optimizer.clip_norm", "memory.budget_gib", "training.epochs"],
)
def test_no_bound_lets_infinity_or_nan_pass(key: str, value: float) -> None:
    (problem,) = problems_of("base/training", Override(key, value, "key=value"))
    assert problem.key == key


def test_an_error_survives_pickling() -> None:
    error = ConfigProblems(problems_of(str(ASSETS / "unknown_keys.yaml")))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error.exit_status == 2
    assert len(str(error).splitlines()) == 8


# ---- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "7b/default",
        "7b/default.yaml",
        "configs/7b/default",
        "configs/7b/default.yaml",
        "./configs/7b/default.yaml",
    ],
)
def test_both_forms_of_a_name_find_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_configs(tmp_path, {"configs/7b/default.yaml": "description: mine"})
    monkeypatch.chdir(tmp_path)
    resolved = resolve(name)
    assert resolved.name == "7b/default"
    assert resolved.file == tmp_path / "configs/7b/default.yaml"


def test_a_config_is_found_as_a_path_then_in_the_project_then_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_configs(
        tmp_path,
        {
            "project/configs/base/training.yaml": "description: the project's",
            "elsewhere/base/training.yaml": "description: a path",
        },
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    project = tmp_path / "project"
    assert find_config("base/training.yaml", project=project) == (
        tmp_path / "elsewhere/base/training.yaml"
    )
    monkeypatch.chdir(tmp_path)
    assert find_config("base/training", project=project) == (project / "configs/base/training.yaml")
    assert find_config("base/training") == shipped_configs() / "base/training.yaml"
    assert find_config("configs/base/training.yaml") == shipped_configs() / "base/training.yaml"


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {"configs/7b/long_context.yaml": "", "configs/7b/default.yaml": ""},
    )
    for name in ("7b/long_contex", "long_context", "7B/long_context.yaml"):
        with pytest.raises(ConfigProblems, match=r"did you mean 7b/long_context") as caught:
            find_config(name, project=tmp_path)
        assert caught.value.exit_status == 2
    with pytest.raises(ConfigProblems, match="workbench ls"):
        find_config("zzzzzzzz", project=tmp_path)


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("16gb", "1gpu_llama_7b/16gb"),
        ("default", "1gpu_llama_7b/default"),
        ("DEFAULT.yaml", "1gpu_llama_7b/default"),
        ("24gb", "1gpu_llama_30b/24gb or 1gpu_llama_70b/24gb"),
        ("1gpu_llama_7b", "1gpu_llama_7b/8gb"),
        ("1gpu_llama_70b/", "1gpu_llama_70b/24gb"),
        ("zb", "pipeline_llama_7b/zb_4gpu or pipeline_llama_7b/zb_6gpu"),
        ("samantha", "base/samantha"),
        ("dem", "demo"),
        ("1gpu_llama_7b/long_contxt", "1gpu_llama_7b/long_context"),
        ("configs/1gpu_llama_7b/defualt.yaml", "1gpu_llama_7b/default"),
        ("1gpu_lama_7b/packed", "1gpu_llama_7b/packed"),
        ("i1f1b_8gpu", "pipeline_llama_7b/i1f1b_6gpu"),
    ],
)
def test_part_of_a_name_is_refused_with_the_names_it_may_mean(typed: str, nearest: str) -> None:
    with pytest.raises(ConfigProblems) as caught:
        find_config(typed)
    (problem,) = caught.value.problems
    assert problem.remedy.startswith(f"did you mean {nearest}")


def test_a_link_counts_as_where_it_lies_and_one_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    write_configs(
        tmp_path,
        {
            "elsewhere/real.yaml": "extends: beside.yaml\nmodel: {path: tiny}",
            "configs/beside.yaml": "description: beside the link",
            "configs/round.yaml": "extends: back.yaml",
        },
    )
    (configs / "linked.yaml").symlink_to(tmp_path / "elsewhere/real.yaml")
    (configs / "dangling.yaml").symlink_to("nowhere.yaml")
    (configs / "loop.yaml").symlink_to("loop.yaml")
    (configs / "back.yaml").symlink_to("round.yaml")
    resolved = resolve("linked", project=tmp_path)
    assert resolved.file == configs / "linked.yaml"
    assert resolved.config.description == "beside the link"
    assert resolved.config.model.path == str(configs / "tiny")
    listed = {each.name: each.problem for each in list_configs(tmp_path)}
    assert listed["linked"] is None
    for name in ("dangling", "loop"):
        problem = listed[name]
        assert problem is not None
        assert f"{name}.yaml: cannot be read" in problem
    for name in ("round", "back"):
        problem = listed[name]
        assert problem is not None
        assert "goes in a circle" in problem


def test_run_folders_below_the_configs_are_no_configs(tmp_path: Path) -> None:
    """What a run leaves behind, a resolved config.yaml among it, is not found again as a config."""
    write_configs(
        tmp_path,
        {
            "configs/mine.yaml": "description: mine",
            "configs/output/mine-1/config.yaml": dump_config(Config()),
            "configs/output/mine-1/origins.json": "{}",
            "configs/output/mine-1/checkpoints/checkpoint-1/more.yaml": "a: b",
        },
    )
    names = [each.name for each in list_configs(tmp_path)]
    assert "mine" in names
    assert not any("output" in name for name in names)


@pytest.mark.parametrize("name", ["", "/", ".", "configs", "a\0b", "$NOT_SET_AT_ALL/x", "a" * 5000])
def test_odd_names_are_refused_as_names(name: str) -> None:
    with pytest.raises(ConfigProblems):
        find_config(name)


def test_a_project_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for project in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ConfigProblems, match="project"):
            list_configs(project)


# ---- listing ----------------------------------------------------------------------------------


def test_a_broken_config_is_one_line_and_the_others_still_list(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "configs/base/hidden.yaml": "description: a base",
            "configs/.cache/hidden.yaml": "description: hidden",
            "configs/cpu.yaml": """
                description: small
                training: {device: cpu}
                data: {max_length: 64}
            """,
            "configs/four.yaml": """
                description: four
                training: {engine: pipeline}
                pipeline: {ranks: 2, replicas: 2}
            """,
            "configs/broken.yaml": "optimizer:\n  learning_rte: 1\n  warmup_step: 2",
            "configs/cut.yaml": "description: [",
        },
    )
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "linked.yaml").write_text("")
    (tmp_path / "configs/link").symlink_to(outside)
    listed = {each.name: each for each in list_configs(tmp_path)}
    assert not any("hidden" in name or "linked" in name for name in listed)
    assert (listed["cpu"].description, listed["cpu"].num_gpus, listed["cpu"].context) == (
        "small",
        0,
        64,
    )
    assert listed["four"].num_gpus == 4
    for name, line in (("broken", 2), ("cut", 1)):
        problem = listed[name].problem
        assert problem is not None
        assert f"{name}.yaml:{line}" in problem
        assert "\n" not in problem


def test_a_config_is_judged_in_a_list_as_it_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the configs of a list share is read, merged and judged once; none may notice."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ASSETS, tmp_path / "configs")
    write_configs(
        tmp_path,
        {
            # Families that meet in one base, in every order, some with a mistake of their own.
            "configs/one.yaml": "extends: base/training.yaml\nbatch: {train: 4}",
            "configs/two.yaml": "extends: base/training.yaml\nbatch: {evaluation: 4}",
            "configs/both.yaml": "extends: [one.yaml, two.yaml]\ndata: {max_length: 128}",
            "configs/other_way.yaml": "extends: [two.yaml, one.yaml]\ndata: {max_length: 256}",
            "configs/again.yaml": "extends: [both.yaml, other_way.yaml]",
            "configs/wrong.yaml": "extends: both.yaml\nbatch: {train: 0}",
            "configs/below_wrong.yaml": "extends: wrong.yaml\nbatch: {train: 2}",
            "configs/bad_flag.yaml": "extends: both.yaml\nargs: {--lr: optimizer.rate}",
            "configs/below_bad_flag.yaml": "extends: bad_flag.yaml\nargs: {--lr: null}",
            "configs/late.yaml": "extends: [both.yaml, one.yaml]",
            "configs/deeper/one.yaml": "extends: ../one.yaml\nmodel: {path: tiny}",
        },
    )
    listed = list_configs(None)
    broken = [each for each in listed if each.problem is not None]
    assert len(broken) > 70
    assert len(listed) - len(broken) > 25
    for each in listed:
        assert (each.problem, each.description, each.context) == alone(each.path)


def alone(path: Path) -> tuple[str | None, str, int | None]:
    """Give first problem, description and context of a config that is read by itself."""
    try:
        config = resolve(str(path)).config
    except ConfigProblems as error:
        return str(error.problems[0]), "", None
    return None, config.description, config.data.max_length


def test_every_shipped_config_resolves() -> None:
    listed = list_configs(None)
    assert [each.problem for each in listed] == [None] * len(listed)
    bases = sorted((shipped_configs() / "base").glob("*.yaml"))
    assert len(bases) >= 3
    for base in bases:
        resolve(str(base))


def test_the_base_states_every_key_so_that_no_default_is_hidden() -> None:
    leaves = resolve("base/training").leaves
    assert {key for key, leaf in leaves.items() if leaf.origin.file is None} == {"description"}
    assert set(leaves) == set(all_keys())


def test_the_base_gives_what_the_schema_gives() -> None:
    assert resolve("base/training").config == Config()


def test_samantha_has_the_values_of_the_reference() -> None:
    config = resolve("base/samantha").config
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.cooldown_steps) == (
        4.0e-6,
        50,
        0,
    )
    assert optimizer.weight_decay == 1e-3
    assert (config.batch.train, config.batch.evaluation) == (8, 16)
    assert (config.logging.every_steps, config.evaluation.every_steps) == (10, 50)
    assert (config.evaluation.max_batches, config.checkpoints.every_steps) == (10, 250)
    assert (config.checkpoints.keep, config.training.seed, config.training.epochs) == (3, 42, 1.0)
    assert (config.data.chat_template, config.model.dtype) == ("chatml", "bfloat16")
    assert (config.optimizer.rounding, config.training.matmul_precision) == ("stochastic", "high")


# ---- written and read again -------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="."), min_size=1)


@given(
    description=texts,
    path=texts,
    source=names,
    role=names,
    prompts=st.lists(texts, max_size=3),
    log_name=st.none() | texts,
    shares=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
)
def test_a_written_config_reads_as_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    description: str,
    path: str,
    source: str,
    role: str,
    prompts: list[str],
    log_name: str | None,
    shares: list[float],
) -> None:
    config = Config(
        description=description,
        data=DataSection(
            sources={source: SourceSection(path=path, files=prompts)},
            split_at=shares,
            roles={role: "tool"},
        ),
        samples=SamplesSection(prompts=prompts),
        logging=LoggingSection(name=log_name),
    )
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert read_resolved(file) == config


def test_workers_read_no_config_that_leaves_a_key_out(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    complete = dump_config(Config())
    file.write_text(complete)
    assert read_resolved(file) == Config()
    without_seed = "".join(
        line for line in complete.splitlines(keepends=True) if "seed:" not in line
    )
    for content, key in (
        (without_seed, "training.seed"),
        (complete + "extends: x.yaml\n", "extends"),
        (complete.replace("seed: 42", "seed: many"), "training.seed"),
        (complete.replace("  seed: 42", "  sed: 42"), "training.sed"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigProblems) as caught:
            read_resolved(file)
        assert key in [problem.key for problem in caught.value.problems]
    with pytest.raises(ConfigProblems, match="cannot be read"):
        read_resolved(tmp_path / "nowhere.yaml")


def test_leaves_and_the_typed_config_agree() -> None:
    overrides = parse_overrides(
        ["data.sources.poems.path=/p.json", "data.roles.narrator=system", "training.epochs=2"]
    )
    resolved = resolve("base/samantha", overrides=overrides)
    built = msgspec.to_builtins(resolved.config)
    for key, leaf in resolved.leaves.items():
        value = built
        for part in key.split("."):
            value = value[part]
        assert leaf.value == value
        assert type(leaf.value) is type(value)
    assert "data.sources.poems.format" in resolved.leaves
    assert "data.roles.narrator" in resolved.leaves
    assert "data.sources" not in resolved.leaves


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 10**20)
    | st.floats()
    | st.sampled_from(["auto", "no", "", "~", "$HOME", "/p", "x.jinja", "load", "exact_norm"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "files", "poems", "a.b", ""]), inner, max_size=2)
    ),
    max_leaves=6,
)
keys = st.sampled_from(
    [*all_keys(), "data.sources.poems", "data.sources.poems.path", "model", "data"]
)


@given(given_values=st.lists(st.tuples(keys, values), min_size=1, max_size=4))
def test_whatever_is_given_for_a_key_either_resolves_or_is_named(
    given_values: list[tuple[str, object]],
) -> None:
    overrides = [Override(key, value, "key=value") for key, value in given_values]
    problems: list[Problem] = []
    written = ""
    try:
        written = dump_config(resolve("base/training", overrides=overrides).config)
    except ConfigProblems as error:
        problems = error.problems
    assert bool(problems) is not bool(written)
    assert all(problem.where and problem.what and problem.remedy for problem in problems)
