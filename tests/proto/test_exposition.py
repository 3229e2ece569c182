"""The text that Prometheus reads, against a second reader of the format."""

from exposition_text import parse
from hypothesis import given
from hypothesis import strategies as st

from overlayd.proto.exposition import Histogram, family, histograms

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x85\u2028\u2029"))


@given(st.lists(st.tuples(WORDS, st.floats(allow_nan=False))))
def test_any_labels_and_numbers_come_back(samples: list[tuple[str, float]]) -> None:
    text = "".join(family("x_total", "counter", "a\nb\\", ("name",), [((value,), number) for value, number in samples]))
    assert text.startswith("# HELP x_total a\\nb\\\\\n# TYPE x_total counter\n")
    assert parse(text) == [("x_total", {"name": value}, number) for value, number in samples]


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_what_is_at_most_each_bound(numbers: list[float]) -> None:
    histogram = Histogram((0.5, 1, 10))
    for number in numbers:
        histogram.observe(number)
    samples = parse("".join(histograms("h", "help", ("op",), {("status",): histogram})))
    buckets = {labels["le"]: count for name, labels, count in samples if name == "h_bucket"}
    bounds = ("0.5", "1", "10", "+Inf")
    assert buckets == {bound: sum(number <= float(bound) for number in numbers) for bound in bounds}
    assert [count for name, _, count in samples if name == "h_count"] == [len(numbers)]


def test_a_sample_without_labels_is_a_name_and_a_number() -> None:
    text = "".join(family("x_peers", "gauge", "how many", (), [((), 7)]))
    assert text.endswith("\nx_peers 7\n")
    assert parse(text) == [("x_peers", {}, 7)]
