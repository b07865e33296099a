import msgspec
import pytest

from workbench.data.findings import Finding, Findings, Severity
from workbench.errors import DataError


def found(row: int, severity: Severity = "error") -> Finding:
    return Finding(severity, f"data.json row {row}", "has no text", "correct the row")


def findings_of(*items: tuple[str, Finding]) -> Findings:
    findings = Findings()
    for kind, finding in items:
        findings.add(kind, finding)
    return findings


def test_every_finding_is_kept_and_the_same_is_kept_once() -> None:
    findings = findings_of(*[("empty", found(row)) for row in [*range(1, 31), 30]])
    assert [finding.where for finding in findings] == [f"data.json row {n}" for n in range(1, 31)]
    assert findings.num_errors == 30


def test_a_kind_is_shown_a_few_times_and_then_counted() -> None:
    findings = findings_of(
        *[("odd", found(row, "warning")) for row in range(1, 3)],
        *[("empty", found(row)) for row in range(1, 14)],
    )
    shown = list(findings.shown())
    assert [finding.where for finding in shown] == [
        *[f"data.json row {row}" for row in range(1, 11)],
        "3 more, up to data.json row 13",
        "data.json row 1",
        "data.json row 2",
    ]
    assert [finding.severity for finding in shown] == ["error"] * 11 + ["warning"] * 2
    assert len(list(findings.shown(3))) == 4 + 2
    assert len(list(findings.shown(None))) == 13 + 2


def test_a_single_one_more_is_shown_in_place_of_being_counted() -> None:
    shown = findings_of(*[("empty", found(row)) for row in range(1, 12)]).shown()
    assert [finding.where for finding in shown][-1] == "data.json row 11"


def test_findings_survive_being_written_down() -> None:
    findings = findings_of(("empty", found(1)), ("role ü", found(2, "warning")))
    again = Findings.decode(findings.encode())
    assert list(again) == list(findings)
    again.add("empty", found(1))
    assert len(list(again)) == 2
    with pytest.raises(msgspec.DecodeError):
        Findings.decode(b'{"empty": ')


def test_errors_are_raised_with_the_first_and_their_number() -> None:
    findings_of(("odd", found(1, "warning"))).raise_errors()
    with pytest.raises(DataError) as caught:
        findings_of(("odd", found(1, "warning")), *[("e", found(n)) for n in (2, 3)]).raise_errors()
    assert str(caught.value) == (
        "data.json row 2: has no text (and 1 more error in the data); correct the row"
    )


def test_a_last_line_says_no_more_of_the_others_than_is_true() -> None:
    findings = Findings()
    for number in range(13):
        what = f"has {number} tokens"
        findings.add("long", Finding("warning", f"data.json row {number}", what, "cut it"))
    *_, last = findings.shown()
    assert (last.where, last.what) == ("3 more, up to data.json row 12", "much the same")
