"""A finding's one line, and the order of many."""

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.findings import SEVERITIES, Finding, ordered

FINDING = Finding("port-closed", "error", "port 51820", "is closed", "no peer gets in", "open it")


def test_one_line():
    assert FINDING.line == "port 51820 is closed; no peer gets in; open it"
    assert FINDING._replace(symptom="").line == "port 51820 is closed; open it"


@given(st.lists(st.tuples(st.sampled_from(SEVERITIES), st.text(max_size=2))))
def test_the_worst_come_first_and_else_the_order_stays(drawn):
    found = ordered(FINDING._replace(severity=severity, object=name) for severity, name in drawn)
    for severity in SEVERITIES:
        assert [each.object for each in found if each.severity == severity] == [n for s, n in drawn if s == severity]
    assert [SEVERITIES.index(each.severity) for each in found] == sorted(SEVERITIES.index(s) for s, _ in drawn)
