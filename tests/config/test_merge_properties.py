"""What holds of merging for any files: how they associate, and where each value comes from."""

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.config.configs_on_disk import write_configs
from workbench.cli.configs import show_text
from workbench.config.inherit import Branch, Leaf, Origin, overlaid, stated_keys
from workbench.config.load import ConfigProblems, ResolvedConfig, dump_config, resolve
from workbench.config.yaml_reader import (
    Stated,
    StatedMapping,
    read_text,
    read_value,
    write_scalar,
)

EXAMPLES = 40

# ---- overlaying plain mappings ------------------------------------------------------------------

Plain = dict[str, object]

names = st.sampled_from(["a", "b", "c"])
scalars = st.none() | st.integers(0, 9) | st.lists(st.integers(0, 3), max_size=2)
any_shape: st.SearchStrategy[Plain] = st.dictionaries(
    names,
    st.recursive(scalars, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=6),
    max_size=3,
)


def of_one_shape(shape: Plain) -> st.SearchStrategy[Plain]:
    """Mappings that give a value only where ``shape`` does, and keys only where it has some."""
    return st.fixed_dictionaries(
        {},
        optional={
            name: of_one_shape(entry) if isinstance(entry, dict) else scalars
            for name, entry in shape.items()
        },
    )


def stated(values: Plain) -> StatedMapping:
    return StatedMapping(
        {
            name: stated(entry) if isinstance(entry, dict) else Stated(entry, 1)
            for name, entry in values.items()
        },
        1,
    )


def values_of(branch: Branch) -> Plain:
    return {
        name: values_of(entry) if isinstance(entry, Branch) else entry.value
        for name, entry in branch.entries.items()
    }


def over(*files: Plain) -> Plain:
    """Give the values of files applied one after the other."""
    tree = Branch(Origin("nobody"))
    for file in files:
        tree = overlaid(tree, stated(file), lambda line: Origin("somebody"))
    return values_of(tree)


@settings(max_examples=EXAMPLES)
@given(data=st.data(), shape=any_shape)
def test_overlaying_is_associative_where_a_key_is_a_mapping_in_all_files_or_in_none(
    data: st.DataObject, shape: Plain
) -> None:
    a, b, c = (data.draw(of_one_shape(shape), label=name) for name in "abc")
    assert over(a, b, c) == over(a, over(b, c)) == over(over(a, b), c)


@settings(max_examples=EXAMPLES)
@given(a=any_shape, b=any_shape, c=any_shape)
def test_bases_may_always_be_merged_before_the_file_that_extends_them(
    a: Plain, b: Plain, c: Plain
) -> None:
    """On the left there is no exception: this is why the chain of bases can be merged once."""
    assert over(a, b, c) == over(over(a, b), c)


def test_a_value_between_two_mappings_is_the_exception_that_is_documented() -> None:
    a: Plain = {"x": {"p": 1}}
    b: Plain = {"x": None}
    c: Plain = {"x": {"q": 2}}
    assert over(a, b, c) == {"x": {"q": 2}}
    assert over(a, over(b, c)) == {"x": {"p": 1, "q": 2}}


@settings(max_examples=EXAMPLES)
@given(a=any_shape)
def test_a_file_that_states_nothing_changes_nothing_and_a_file_twice_is_a_file_once(
    a: Plain,
) -> None:
    assert over(a) == over({}, a) == over(a, {}) == over(a, a) == a


@settings(max_examples=EXAMPLES)
@given(files=st.lists(any_shape, min_size=1, max_size=4))
def test_of_a_key_the_last_file_that_states_it_wins_and_the_history_tells_the_others(
    files: list[Plain],
) -> None:
    tree = Branch(Origin("nobody"))
    for number, file in enumerate(files):
        tree = overlaid(tree, stated(file), lambda line, number=number: Origin(str(number)))
    for name, entry in tree.entries.items():
        givers = [number for number, file in enumerate(files) if name in file]
        if isinstance(entry, Leaf):
            assert entry.origin == Origin(str(givers[-1]))
            assert entry.value == files[givers[-1]][name]
            told = [int(each.origin.source) for each in entry.overrode]
            # Back to the last file in which the key was a mapping: that one has no single value.
            behind = givers[-2::-1]
            mappings = [number for number in behind if isinstance(files[number][name], dict)]
            assert told == behind[: behind.index(mappings[0])] if mappings else told == behind


# ---- whole chains of files ----------------------------------------------------------------------

VALUES: dict[str, st.SearchStrategy[object]] = {
    "description": st.sampled_from(["one", "two: with a colon", "#three", ""]),
    "model.path": st.none() | st.sampled_from(["/m", "models/tiny", "~/m"]),
    "model.dtype": st.sampled_from(["bfloat16", "float32"]),
    "data.max_length": st.integers(16, 4096),
    "data.split_at": st.sampled_from([[0.5, 0.75], [0.8, 0.95]]),
    "data.sources.poems.path": st.sampled_from(["poems.json", "owner/poems", "/data/poems.json"]),
    "data.sources.poems.weight": st.floats(0.5, 2, allow_nan=False),
    "data.sources.letters": st.none(),
    "data.sources.letters.path": st.sampled_from(["letters.json", "owner/letters"]),
    "data.sources.letters.files": st.lists(st.sampled_from(["a.json", "b.json"]), max_size=2),
    "data.roles.narrator": st.sampled_from(["system", "user"]),
    "data.shuffle": st.booleans(),
    "batch.train": st.integers(4, 64),
    "optimizer.learning_rate": st.floats(0, 1, allow_nan=False),
    "optimizer.warmup_steps": st.integers(0, 10),
    "memory.budget_gib": st.none() | st.integers(1, 80),
    "samples.prompts": st.lists(st.sampled_from(["hello", "who: you?", "null"]), max_size=2),
    "checkpoints.save_strategy": st.sampled_from(["no", "steps"]),
    "checkpoints.resume": st.sampled_from(["auto", "no", "there/checkpoint-3"]),
    "training.max_steps": st.none() | st.integers(100, 10_000),
}


@st.composite
def file_texts(draw: st.DrawFn) -> str:
    """The text of a config: some keys, in block or flow form, with comments and empty lines."""
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=8))
    if "data.sources.letters" in keys:
        keys = [key for key in keys if not key.startswith("data.sources.letters.")]
    chosen = {tuple(key.split(".")): draw(VALUES[key], label=key) for key in keys}
    return "".join(line + "\n" for line in _written(draw, chosen, ()))


def _written(
    draw: st.DrawFn, chosen: dict[tuple[str, ...], object], path: tuple[str, ...]
) -> list[str]:
    indent = "  " * len(path)
    lines: list[str] = []
    below = dict.fromkeys(key[len(path)] for key in chosen if key[: len(path)] == path)
    for name in below:
        here = (*path, name)
        if draw(st.booleans()):
            lines += draw(st.sampled_from([[""], [f"{indent}# a word"], ["", "", "# b: 1"]]))
        if here in chosen:
            value = chosen[here]
            if isinstance(value, list) and value and draw(st.booleans()):
                lines.append(f"{indent}{name}:")
                lines += [f"{indent}  - {write_scalar(each)}" for each in value]
            else:
                lines.append(f"{indent}{name}: {write_scalar(value)}")
        elif draw(st.booleans()):
            inner = {
                key[len(here) :]: entry for key, entry in chosen.items() if key[: len(here)] == here
            }
            lines.append(f"{indent}{name}: {write_scalar(_nested(inner))}")
        else:
            lines.append(f"{indent}{name}:")
            lines += _written(draw, chosen, here)
    return lines


def _nested(keys: dict[tuple[str, ...], object]) -> Plain:
    nested: Plain = {}
    for (name, *rest), value in keys.items():
        if rest:
            below = {key[1:]: entry for key, entry in keys.items() if key[0] == name}
            nested[name] = _nested(below)
        else:
            nested[name] = value
    return nested


@st.composite
def chains(draw: st.DrawFn) -> tuple[dict[str, str], list[str]]:
    """Three files by name, and the order in which they apply."""
    texts = [draw(file_texts()) for _ in range(3)]
    in_a_row = draw(st.booleans())
    above = {
        "configs/base/bottom.yaml": "",
        "configs/base/middle.yaml": "extends: bottom.yaml\n" if in_a_row else "",
        "configs/top.yaml": "extends: base/middle.yaml\n"
        if in_a_row
        else "extends:\n  - base/bottom.yaml\n  - base/middle.yaml\n",
    }
    files = {name: begin + text for (name, begin), text in zip(above.items(), texts, strict=True)}
    return files, list(above)


def resolved_chain(
    factory: pytest.TempPathFactory, files: dict[str, str]
) -> tuple[Path, ResolvedConfig]:
    """Write the files and resolve the last; a source that nobody gives a path is no example."""
    project = write_configs(factory.mktemp("chain"), files)
    try:
        return project, resolve("top", project=project)
    except ConfigProblems as error:
        assume(not all(problem.what == "path is missing" for problem in error.problems))
        raise


@settings(max_examples=EXAMPLES)
@given(chain=chains())
def test_every_origin_points_at_the_line_that_holds_the_value(
    tmp_path_factory: pytest.TempPathFactory, chain: tuple[dict[str, str], list[str]]
) -> None:
    files, order = chain
    project, resolved = resolved_chain(tmp_path_factory, files)
    num_seen = 0
    for key, leaf in resolved.leaves.items():
        told = [(leaf.value, leaf.origin), *((each.value, each.origin) for each in leaf.overrode)]
        for value, origin in told:
            if origin.file is None or value == {}:
                continue  # by the schema; or an empty mapping, which no single line states
            assert origin.line is not None
            lines = origin.file.read_text().splitlines()
            assert f"{key.rsplit('.', 1)[-1]}:" in lines[origin.line - 1]
            before, within = "\n".join(lines[: origin.line - 1]), up_to(lines, origin.line)
            assert states(within, key)
            assert not states(before, key)
            # A path is shown as it is found from here, not as it is written.
            assert is_located(key) or value_in(within, key) == value
            num_seen += 1
        givers = [name for name in order if states(files[name], key)]
        if leaf.origin.file is not None and givers:
            assert leaf.origin.file == project / givers[-1]
    is_stated = any("letters" not in key for name in order for key in keys_in(files[name]))
    assert num_seen > 0 or not is_stated


def is_located(key: str) -> bool:
    return key.rsplit(".", 1)[-1] in ("path", "resume")


def keys_in(text: str) -> list[str]:
    stated_ones = [".".join(path) for path, _ in stated_keys(read_text(text)[0])]
    return [key for key in stated_ones if key != "extends"]


def states(text: str, key: str) -> bool:
    return key in keys_in(text)


def up_to(lines: list[str], number: int) -> str:
    """Give the text to a line, and to the end of a list that is written below it."""
    end = number
    while end < len(lines) and lines[end].lstrip().startswith("- "):
        end += 1
    return "\n".join(lines[:end])


@settings(max_examples=EXAMPLES)
@given(chain=chains())
def test_what_is_shown_loads_to_an_equal_config(
    tmp_path_factory: pytest.TempPathFactory, chain: tuple[dict[str, str], list[str]]
) -> None:
    files, _ = chain
    project, resolved = resolved_chain(tmp_path_factory, files)
    for text in (show_text(resolved), dump_config(resolved.config)):
        (project / "configs/shown.yaml").write_text(text)
        assert resolve("shown", project=project).config == resolved.config


@settings(max_examples=EXAMPLES)
@given(chain=chains())
def test_a_value_stated_in_the_last_file_is_the_value(
    tmp_path_factory: pytest.TempPathFactory,
    chain: tuple[dict[str, str], list[str]],
) -> None:
    """And one that a lower file states comes through wherever no later one states it."""
    files, order = chain
    _, resolved = resolved_chain(tmp_path_factory, files)
    for key in ("batch.train", "data.max_length", "optimizer.warmup_steps", "model.dtype"):
        given_values = [value_in(files[name], key) for name in order if states(files[name], key)]
        if given_values:
            assert resolved.leaves[key].value == given_values[-1]
            told = [each.value for each in resolved.leaves[key].overrode]
            assert told == given_values[-2::-1]


def value_in(text: str, key: str) -> object:
    return next(
        entry.value for path, entry in stated_keys(read_text(text)[0]) if ".".join(path) == key
    )


# ---- two parsers --------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    st.text(
        st.sampled_from("ab1-:#&*!|>'\"[]{},?%@`~ \n\t.e_\\é\x00\ud800\x85\u2028\r"), max_size=16
    )
)
def test_a_text_means_the_same_with_and_without_libyaml(text: str) -> None:
    assert repr(read_text(text)) == repr(read_text(text, by_libyaml=False))


@settings(max_examples=EXAMPLES)
@given(text=file_texts())
def test_a_config_means_the_same_with_and_without_libyaml(text: str) -> None:
    with_it, problems = read_text(text)
    assert not problems
    assert with_it == read_text(text, by_libyaml=False)[0]
    assert read_value("[1, no]") == [1, "no"]
