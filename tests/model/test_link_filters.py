"""What is said of XDP, tc filters and queueing disciplines."""

import pytest

from overlayd.model.link_filters import LinkFilter, link_findings


@pytest.mark.parametrize("kind", ["xdp", "bpf", "drop", "redirect", "blackhole"])
def test_the_way_out_may_have_programs_of_others_and_our_links_have_none(kind):
    for link, severity in (("eth0", "hint"), ("zl-a-g", "warning")):
        (found,) = link_findings([LinkFilter(link, kind, "ingress", "lo")] * 2, "eth0")
        expected = "error" if kind == "blackhole" else severity
        code = "link-closed" if kind == "blackhole" else "link-filtered"
        assert (found.code, found.severity, found.object) == (code, expected, f"link {link}")
        assert f"dev {link}" in found.remedy and "{" not in found.line


def test_what_is_said():
    (found,) = link_findings([LinkFilter("zl-a-g", "redirect", "egress", "lo")], "eth0")
    assert found.line == (
        "link zl-a-g has a tc filter that leads packets to lo; what it takes is lost; see whose it is (tc filter show"
        " dev zl-a-g egress), and remove it"
    )


def test_a_queueing_discipline_that_loses_is_told_on_the_way_out_too():
    for link in ("zl-a-g", "eth0"):
        (found,) = link_findings([LinkFilter(link, "lossy", target="tbf")], "eth0")
        assert (found.code, found.severity) == ("link-filtered", "warning")
        assert "(tbf) that has dropped more packets" in found.problem and f"tc -s qdisc show dev {link}" in found.remedy
