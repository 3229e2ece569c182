"""Which backend is taken: the order of preference, and what is said of one that cannot be had."""

from errno import ENODEV

import pytest

from overlayd.errors import MechanismError
from overlayd.linux.wireguard import choice
from overlayd.linux.wireguard.kernel import Kernel
from overlayd.linux.wireguard.userspace import Userspace


def lacking(monkeypatch: pytest.MonkeyPatch, kernel: str, userspace: str) -> None:
    monkeypatch.setattr(Kernel, "missing", staticmethod(lambda: kernel))
    monkeypatch.setattr(Userspace, "missing", staticmethod(lambda: userspace))


@pytest.mark.parametrize(
    ("preference", "kernel", "userspace", "taken"),
    [
        ("auto", "", "", Kernel),
        ("auto", "no module", "", Userspace),
        ("auto", "no module", "no program", None),
        ("kernel", "", "no program", Kernel),
        ("userspace", "", "", Userspace),
    ],
)
def test_the_kernels_is_taken_first_and_what_was_asked_for_alone(monkeypatch, preference, kernel, userspace, taken):
    lacking(monkeypatch, kernel, userspace)
    found = choice.choose(preference)
    assert type(found) is taken if taken else found is None


def test_nothing_is_missing_as_soon_as_one_suits(monkeypatch):
    lacking(monkeypatch, "no module", "")
    assert choice.missing("auto") == ""
    assert choice.missing("kernel") == "kernel: no module"
    lacking(monkeypatch, "no module", "no program")
    assert choice.missing("auto") == "kernel: no module; userspace: no program"


@pytest.mark.parametrize(("preference", "why"), [("kernel", "no module"), ("userspace", "no program")])
def test_an_explicit_preference_is_a_must(monkeypatch, preference, why):
    lacking(monkeypatch, "no module", "no program")
    with pytest.raises(MechanismError, match=why) as caught:
        choice.choose(preference)
    assert (caught.value.object, caught.value.errno) == (preference, ENODEV)
