"""The wire format is that of the design, byte for byte where it is shown there."""

import math

import msgspec
import pytest

from workbench.control.framing import MAX_LINE_BYTES, encode
from workbench.control.messages import (
    Accepted,
    Done,
    Event,
    Failed,
    FromPublisher,
    FromSupervisor,
    Metrics,
    ToSupervisor,
)
from workbench.control.states import refusal, when_acted_on
from workbench.errors import ControlError

TO_SUPERVISOR = [
    '{"type":"hello","protocol":1,"role":"viewer","program":"workbench 0.3.0","host":"tower",'
    '"pid":4242}',
    '{"type":"status","id":1}',
    '{"type":"subscribe","id":2,"topics":["events","metrics","log"]}',
    '{"type":"save","id":3}',
    '{"type":"evaluate","id":3}',
    '{"type":"pause","id":4}',
    '{"type":"resume","id":4}',
    '{"type":"stop","id":5,"save":true}',
    '{"type":"abort","id":6}',
]
FROM_SUPERVISOR = [
    '{"type":"hello","protocol":1,"role":"supervisor","program":"workbench 0.3.0","host":"tower",'
    '"pid":3990,"job":"default-12-3fa9c1"}',
    '{"type":"status","id":1,"state":"training","since":1764000000.0,"step":118,"max_steps":1200,'
    '"attempt":1,"idle_seconds":0.4,"pending":[],"checkpoint":null,'
    '"offsets":{"events":812,"metrics":30410,"log":9120}}',
    '{"type":"done","id":2,"result":{"kind":"subscribed",'
    '"offsets":{"events":812,"metrics":30410,"log":9120}}}',
    '{"type":"log","offset":9120,"text":"[default0]:step 119 loss is not finite\\n"}',
    '{"type":"accepted","id":3,"command":1,"when":"next step"}',
    '{"type":"done","id":3,"command":1,"result":{"kind":"saved","step":120,'
    '"path":"checkpoints/checkpoint-120","bytes":14494000000,"seconds":21.4}}',
    '{"type":"failed","id":6,"reason":"stopping","message":"the job is stopping at step 121",'
    '"remedy":"start it again, then evaluate"}',
]
FROM_PUBLISHER = [
    '{"type":"progress","state":"training","step":119,"max_steps":1200,"idle_seconds":0.0}',
    '{"type":"leaving","state":"failed","step":121,"reason":"no_space",'
    '"message":"checkpoint needs 14.6 GB, 9.1 GB free","remedy":"free space or keep fewer"}',
]


@pytest.mark.parametrize(
    ("union", "lines"),
    [
        (ToSupervisor, TO_SUPERVISOR),
        (FromSupervisor, FROM_SUPERVISOR),
        (FromPublisher, FROM_PUBLISHER),
    ],
    ids=["to supervisor", "from supervisor", "from publisher"],
)
def test_every_line_of_the_design_is_read_and_written_back(union: object, lines: list[str]) -> None:
    for line in lines:
        message = msgspec.json.decode(line, type=union)
        written = msgspec.json.decode(encode(message))
        read = msgspec.json.decode(line)
        assert {name: written[name] for name in read} == read
        assert all(written[name] in (None, "", True) for name in written.keys() - read.keys())


def test_no_number_that_is_none_gets_on_the_wire() -> None:
    line = encode(Metrics(offset=0, record={"loss": math.nan, "deep": [{"norm": math.inf}]}))
    assert msgspec.json.decode(line)["record"] == {"loss": None, "deep": [{"norm": None}]}
    assert line.count(b"\n") == 1


def test_a_message_over_the_limit_is_refused_by_its_sender() -> None:
    with pytest.raises(ControlError, match="1,048,576"):
        encode(Event(offset=0, record={"text": "x" * MAX_LINE_BYTES}))


@pytest.mark.parametrize(
    ("command", "state", "reason"),
    [
        ("save", "starting", None),
        ("save", "training", None),
        ("save", "paused", None),
        ("stop", "evaluating", None),
        ("resume", "paused", None),
        ("resume", "training", "not_paused"),
        ("save", "stopping", "stopping"),
        ("stop", "stopping", "stopping"),
        ("abort", "stopping", None),
        ("abort", "finished", "ended"),
        ("save", "lost", "ended"),
    ],
)
def test_a_state_allows_what_the_table_of_states_says(
    command: str, state: str, reason: str | None
) -> None:
    found = refusal(command, state)  # type: ignore[arg-type]
    assert (found[0] if found else None) == reason


@pytest.mark.parametrize(
    ("command", "state", "when"),
    [
        ("save", "starting", "first step"),
        ("save", "compiling", "first step"),
        ("save", "training", "next step"),
        ("save", "paused", "now"),
        ("stop", "loading", "now"),
        ("stop", "training", "next step"),
        ("abort", "training", "now"),
    ],
)
def test_an_accepted_command_says_when_it_acts(command: str, state: str, when: str) -> None:
    assert when_acted_on(command, state) == when  # type: ignore[arg-type]


def test_answers_repeat_ids_and_requests_without_one_have_none() -> None:
    assert msgspec.to_builtins(Accepted(id=3, command=1, when="now"))["id"] == 3
    failed = Failed(reason="protocol", message="m", remedy="r")
    assert (failed.id, failed.command) == (None, None)
    assert Done.__struct_config__.forbid_unknown_fields
