from workbench.data.duplicates import DUPLICATE, LEAKAGE, Duplicates
from workbench.data.formats import Conversation, Message


def conversation(row: int, answer: str = "Yes.", *, train: bool = True) -> Conversation:
    messages = (Message("user", "Well?", turn=1), Message("assistant", answer, train, 2))
    return Conversation(messages, f"data.json row {row}")


def test_a_conversation_that_was_there_before_names_the_first() -> None:
    duplicates = Duplicates()
    assert duplicates.seen(conversation(1), "train") is None
    assert duplicates.seen(conversation(2, "No."), "train") is None
    for row in (3, 4):
        seen = duplicates.seen(conversation(row), "train")
        assert seen is not None
        kind, finding = seen
        assert (kind, finding.severity, finding.where) == (
            DUPLICATE,
            "warning",
            f"data.json row {row}",
        )
        assert finding.what == "is the same conversation as data.json row 1"


def test_what_is_evaluated_and_trained_on_is_found_in_either_order() -> None:
    for first, second in (("train", "validation"), ("validation", "train")):
        duplicates = Duplicates()
        assert duplicates.seen(conversation(1), first) is None  # type: ignore[arg-type]
        seen = duplicates.seen(conversation(2), second)  # type: ignore[arg-type]
        assert seen is not None
        kind, finding = seen
        held_out, trained = (1, 2) if first == "validation" else (2, 1)
        assert kind == LEAKAGE
        assert finding.where == f"data.json row {held_out}"
        assert finding.what == (
            "is held out for validation, and the same conversation is trained on: "
            f"data.json row {trained}"
        )


def test_what_is_said_by_another_or_trained_otherwise_is_no_duplicate() -> None:
    duplicates = Duplicates()
    texts = (Conversation((), "row 5", "Yes."), Conversation((), "row 6", "No."))
    joined = Conversation((Message("user", "Well?assistantYes."),), "row 7")
    for each in (conversation(1), conversation(2, train=False), *texts, joined):
        assert duplicates.seen(each, "train") is None
    assert duplicates.seen(Conversation((), "row 8", "Yes."), "train") is not None
