"""What an error says: the operation, the object, the kernel's word for it, and what else is known."""

from errno import EEXIST, ENOENT

import pytest

from overlayd.errors import DiskError, MechanismError, OverlaydError, ProtocolError, RequestError, StateError


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MechanismError("create veth", "veth-71-s"), "create veth veth-71-s"),
        (MechanismError("create veth", "veth-71-s", EEXIST), "create veth veth-71-s: File exists (errno 17)"),
        (MechanismError("load", "x.so", detail="install x"), "load x.so: install x"),
        (MechanismError("find", "wg0", ENOENT, "gone"), "find wg0: No such file or directory (errno 2): gone"),
    ],
)
def test_a_refusal_names_operation_object_errno_and_detail(error: MechanismError, says: str) -> None:
    assert str(error) == says


def test_the_parts_are_there_for_programs() -> None:
    error = MechanismError("find", "wg0", ENOENT, "gone")
    assert (error.operation, error.object, error.errno, error.detail) == ("find", "wg0", ENOENT, "gone")


def test_whoever_catches_overlayds_errors_catches_all_of_them() -> None:
    assert all(issubclass(kind, OverlaydError) for kind in (ProtocolError, RequestError, MechanismError, StateError))
    assert issubclass(DiskError, StateError), "the disk may do better next time"
