"""When something of this node is told."""

from overlayd.model.publication import LONGEST_WINDOW, SHORTEST_WINDOW, NamesWindow, RecordPace


def test_a_record_is_told_when_it_has_settled_and_seldom() -> None:
    pace = RecordPace()
    assert not pace.due("a", 0)
    assert not pace.due("b", 4)
    assert not pace.due("b", 8)
    assert pace.due("b", 9)
    pace.told("b", 9)
    assert not pace.due("b", 100)
    assert not pace.due("c", 101)
    assert pace.due("c", 106)
    pace.told("c", 106)
    assert not pace.due("d", 110)
    assert not pace.due("d", 120)
    assert pace.due("d", 120, urgent=True)
    assert pace.due("d", 137)
    assert not pace.due("c", 200)  # as it was told


def test_names_are_gathered_for_longer_when_the_cluster_tells_more_than_it_should() -> None:
    window = NamesWindow()
    assert window.opens is None
    window.changed(0)
    window.changed(0.1)
    assert not window.due(0.19)
    assert window.due(0.2)
    for _ in range(20):
        window.told(20, 10)
        window.changed(0)
    assert window.length == LONGEST_WINDOW
    for _ in range(20):
        window.told(0, 10)
    assert window.length == SHORTEST_WINDOW
    window.changed(5)
    window.failed(6)
    assert window.opens == 7


def test_all_nodes_together_come_to_the_rate() -> None:
    """Five hundred nodes with something to tell all the time."""
    windows = [NamesWindow() for _ in range(500)]
    measured = 0.0
    for _ in range(40):
        measured = sum(1 / each.length for each in windows)
        for each in windows:
            each.told(measured, 10)
    assert 5 < measured < 20
