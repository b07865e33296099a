"""``args:`` and what becomes of a command line."""

from pathlib import Path

import pytest

from tests.config.configs_on_disk import write_configs
from workbench.config.flags import Flag, parse, parse_overrides
from workbench.config.load import ConfigProblems, Override, offered_flags, resolve


@pytest.fixture(scope="module")
def flags() -> tuple[Flag, ...]:
    return offered_flags("base/training")


EVERY_FLAG = [
    (["-M", "/m"], "model.path", "/m"),
    (["--model", "/m"], "model.path", "/m"),
    (["--model-id-or-path", "/m"], "model.path", "/m"),
    (["-M/m"], "model.path", "/m"),
    (["-C", "chatml"], "data.chat_template", "chatml"),
    (["--chat-template=chatml"], "data.chat_template", "chatml"),
    (["--max-steps", "10"], "training.max_steps", 10),
    (["--max-steps=null"], "training.max_steps", None),
    (["--train-epochs", "2.5"], "training.epochs", 2.5),
    (["-S", "no"], "checkpoints.save_strategy", "no"),
    (["--save-strategy", "epoch"], "checkpoints.save_strategy", "epoch"),
    (["--output-dir", "/out"], "training.output_dir", "/out"),
    (["--resume-from-checkpoint", "/c"], "checkpoints.resume", "/c"),
    (["--save-on-each-node"], "checkpoints.save_on_each_node", True),
    (["--save-on-each-node=false"], "checkpoints.save_on_each_node", False),
    (["--lr", "1e-5"], "optimizer.learning_rate", 1e-5),
    (["--warmup-steps", "5"], "optimizer.warmup_steps", 5),
    (["--log-name", "42"], "logging.name", "42"),
]


@pytest.mark.parametrize(("arguments", "key", "value"), EVERY_FLAG)
def test_each_flag_changes_the_key_it_names_and_no_other(
    flags: tuple[Flag, ...], arguments: list[str], key: str, value: object
) -> None:
    overrides, rest = parse(arguments, flags)
    assert rest == []
    plain = resolve("base/training")
    changed = resolve("base/training", overrides=overrides)
    assert changed.leaves[key].value == value
    spelling = next(flag.name for flag in flags if flag.path == key)
    assert changed.leaves[key].origin.source == f"flag {spelling}"
    others = {name for name in plain.leaves if changed.leaves[name] != plain.leaves[name]}
    assert others == {key}


def test_a_flag_that_is_not_given_changes_nothing(flags: tuple[Flag, ...]) -> None:
    assert parse([], flags) == ([], [])


def test_every_flag_of_the_reference_is_offered(flags: tuple[Flag, ...]) -> None:
    tried = {flag.name for arguments, key, _ in EVERY_FLAG for flag in flags if flag.path == key}
    assert tried == {flag.name for flag in flags}
    assert len(flags) == 11


def test_overrides_keep_their_order_and_the_last_wins(flags: tuple[Flag, ...]) -> None:
    overrides, rest = parse(
        ["--lr", "1e-5", "optimizer.learning_rate=2e-5", "batch.train=4", "--lr=3e-5", "loose"],
        flags,
    )
    assert [(each.value, each.source) for each in overrides] == [
        (1e-5, "flag --lr"),
        (2e-5, "key=value"),
        (4, "key=value"),
        (3e-5, "flag --lr"),
    ]
    assert rest == ["loose"]
    leaf = resolve("base/training", overrides=overrides).leaves["optimizer.learning_rate"]
    assert leaf.value == 3e-5
    assert [each.value for each in leaf.overrode[:2]] == [2e-5, 1e-5]


def test_a_value_may_begin_with_a_dash(flags: tuple[Flag, ...]) -> None:
    overrides, rest = parse(["--lr", "-1e-5", "--log-name", "-x"], flags)
    assert [each.value for each in overrides] == [-1e-5, "-x"]
    assert rest == []
    with pytest.raises(
        ConfigProblems, match=r"flag --lr optimizer\.learning_rate: expected a number"
    ):
        resolve("base/training", overrides=overrides)


def test_flags_without_a_value_are_all_named(flags: tuple[Flag, ...]) -> None:
    with pytest.raises(ConfigProblems) as caught:
        parse(["--lr", "--max-steps", "3", "--warmup-steps"], flags)
    assert [problem.key for problem in caught.value.problems] == [
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
    ]


def test_key_value_is_read_as_yaml() -> None:
    overrides = parse_overrides(
        ["a.b=1e-5", "a.c=no", "a.d=", "a.e=[1, 2]", "a.f={x: y}", "a.g='7'", "a.h=x=y"]
    )
    assert [each.value for each in overrides] == [1e-5, "no", None, [1, 2], {"x": "y"}, "7", "x=y"]
    assert {each.source for each in overrides} == {"key=value"}


@pytest.mark.parametrize("text", ["noequals", "=3", "a.b=[", "a.b=.nan", "a.b=*x"])
def test_what_is_no_key_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigProblems):
        parse_overrides([text])


@pytest.mark.parametrize(
    "key", ["extends", "args.--lr", "optimizer", "nothing.here", "model.path.deep", "batch..train"]
)
def test_an_override_of_what_is_no_key_is_refused_with_its_source(key: str) -> None:
    with pytest.raises(ConfigProblems) as caught:
        resolve("base/training", overrides=[Override(key, "x", "key=value")])
    assert caught.value.problems[0].source == "key=value"
    assert str(caught.value).startswith("key=value ")


def test_every_kind_of_mistake_in_args_is_found(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "configs/bad.yaml": """
                args:
                  lr: optimizer.learning_rate
                  --dry-run: training.seed
                  --rate: optimizer.learning_rte
                  --batch-size: batch
                  --none: {short: -N}
                  --model: {path: model.path, short: -t}
                  --long: {path: model.path, short: --mm}
                  --kind: {path: model.path, type: boolean}
                  --field: {path: model.path, shrot: -F}
                  --twice: {path: model.path, short: -D}
                  --again: {path: model.path, short: -D}
                  --seven: 7
            """
        },
    )
    with pytest.raises(ConfigProblems) as caught:
        offered_flags("bad", project=tmp_path)
    found = [
        (problem.line, problem.key, f"{problem.what}; {problem.remedy}")
        for problem in caught.value.problems
    ]
    expected = [
        (2, "args.lr", "no name of a flag"),
        (3, "args.--dry-run", "already the flag of showing the command"),
        (4, "args.--rate", "did you mean optimizer.learning_rate"),
        (5, "args.--batch-size", "a section"),
        (6, "args.--none", "names no key"),
        (7, "args.--model", "-t is already"),
        (8, "args.--long", "not a dash and a letter"),
        (9, "args.--kind", "type is boolean"),
        (10, "args.--field", "did you mean short"),
        (12, "args.--again", "-D is already the flag of model.path"),
        (13, "args.--seven", "names no key"),
    ]
    assert [(line, key) for line, key, _ in found] == [(line, key) for line, key, _ in expected]
    for (_, _, what), (_, _, fragment) in zip(found, expected, strict=True):
        assert fragment in what


def test_a_config_adds_changes_and_removes_flags(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {
            "configs/mine.yaml": """
                extends: base/training.yaml
                optimizer: {learning_rate: 1e-4}
                data: {sources: {poems: {path: poems.json}}}
                args:
                  --model: null
                  --poems: {path: data.sources.poems.path, short: -P, help: The poems}
                  --lr: {short: -L, path: optimizer.learning_rate}
            """
        },
    )
    flags = {flag.name: flag for flag in offered_flags("mine", project=tmp_path)}
    assert "--model" not in flags
    assert flags["--poems"].help == "The poems"
    assert flags["--poems"].type == "path"
    assert (flags["--lr"].short, flags["--lr"].default, flags["--lr"].default_source) == (
        "-L",
        1e-4,
        "mine.yaml:2",
    )


def test_a_broken_config_shows_all_its_mistakes_before_any_flag_is_judged(tmp_path: Path) -> None:
    write_configs(
        tmp_path,
        {"configs/a.yaml": "extends: nowhere.yaml\nbatch: {train: 0}\nargs: {--x: batch.trian}"},
    )
    with pytest.raises(ConfigProblems) as caught:
        offered_flags("a", project=tmp_path)
    assert [problem.key for problem in caught.value.problems] == [
        "extends",
        "batch.train",
        "args.--x",
    ]
