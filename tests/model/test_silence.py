"""How many readings without an answer it takes until a device counts as hung."""

from overlayd.model.silence import CALM, HUNG, LONGEST, Silence


def lost_until_hung(silence: Silence) -> int:
    """How many readings in a row without an answer it takes."""
    lost = 1
    while not silence.unanswered():
        lost += 1
    return lost


def test_so_many_in_a_row_and_twice_as_many_each_time() -> None:
    silence = Silence()
    assert [lost_until_hung(silence) for _ in range(8)] == [min(HUNG << n, LONGEST) for n in range(8)]


def test_an_answer_between_starts_the_count_anew() -> None:
    silence = Silence()
    for _ in range(HUNG * 10):
        assert not any(silence.unanswered() for _ in range(HUNG - 1))
        assert silence.answered()
        assert not silence.answered()
    assert lost_until_hung(silence) == HUNG


def test_only_a_long_calm_makes_it_forget() -> None:
    silence = Silence()
    lost_until_hung(silence)
    for _ in range(CALM - 1):
        silence.answered()
    silence.unanswered()
    for _ in range(CALM - 1):
        silence.answered()
    assert silence.patience == 2 * HUNG
    silence.answered()
    assert silence.patience == HUNG
    assert lost_until_hung(silence) == HUNG
