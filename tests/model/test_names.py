import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import RequestError
from overlayd.model import names

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "names.json").read_text())

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_orchestrator_computes_the_same_name(vector: dict[str, str]) -> None:
    assert names.name(vector["parts"], vector["suffix"]) == vector["name"]
    strings = [*vector["parts"], vector["suffix"]]
    assert f"{names.siphash13(b''.join(s.encode() + bytes([255]) for s in strings)):x}" == vector["hash"]


def test_the_hash_is_the_interpreters_own() -> None:
    """CPython hashes bytes with SipHash-1-3, and PYTHONHASHSEED=0 makes its key zero."""
    rng = random.Random(13)
    inputs = [rng.randbytes(length) for length in range(1, 70)]
    program = (
        "import sys; assert sys.hash_info.algorithm == 'siphash13'\n"
        "for line in sys.stdin: print(hash(bytes.fromhex(line)) & (1 << 64) - 1)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        input="\n".join(data.hex() for data in inputs),
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [names.siphash13(data) for data in inputs] == [int(line) for line in answer.stdout.split()]


@given(st.lists(text, min_size=1, max_size=4), text)
def test_a_name_fits_the_kernel_and_is_plain_exactly_when_that_fits(parts: list[str], suffix: str) -> None:
    plain = "-".join(["zl", *parts, *([suffix] if suffix else [])])
    got = names.name(parts, suffix)
    assert len(got.encode()) <= 15
    assert got.startswith("zl-")
    assert (got == plain) == (len(plain.encode()) <= 15)
    if suffix and len(suffix.encode()) <= 10:
        assert got.endswith("-" + suffix)


def test_length_is_counted_in_bytes() -> None:
    assert names.name(["abcdefgh"], "xy") == "zl-abcdefgh-xy"
    assert names.name(["äbcdefgh"], "xy") == "zl-äbcdefgh-xy"  # 14 characters, 15 bytes
    assert names.name(["äöcdefgh"], "xy") != "zl-äöcdefgh-xy"  # 14 characters, 16 bytes


@pytest.mark.parametrize(("length", "digits"), [(9, 2), (10, 1), (11, 12), (12, 12)])
def test_a_suffix_without_room_for_a_digit_is_left_out(length: int, digits: int) -> None:
    suffix = "s" * length
    got = names.name(["a-long-enough-part"], suffix)
    assert got == "zl-" + got[3 : 3 + digits] + (f"-{suffix}" if digits < 12 else "")
    assert len(got) == 15


def test_linux_refuses_white_space_byte_for_byte() -> None:
    for link in ("zl-a b-b", "zl-a:b-b", "zl-a/b-b", "zl-a%d-b", "zl-\u00e0-b", "zl-\u0420-b"):
        with pytest.raises(RequestError, match="service 'x' makes the link name"):
            names.require_legal(link, "service 'x'")
    for link in ("zl-\u00e9-b", "zl-\u0411-b", ""):
        names.require_legal(link, "service 'x'")


def test_each_object_has_its_suffix() -> None:
    assert names.device_name("zlayer", "12345") == "zl-9eae6e0a9b-g"
    assert names.bridge_name("zlayer", "12345", "web") == "zl-8a3d9b380b-b"
    assert names.dedicated_name("zlayer", "12345", "web") == "zl-73f456b5c4-d"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_bridges_are_known_by_their_names(vector: dict[str, str]) -> None:
    assert names.is_bridge_name(vector["name"]) == (vector["suffix"] == "b")


def test_veth_names_carry_the_pid() -> None:
    assert names.veth_name(71, "s") == "veth-71-s"
    assert len(names.veth_name(1 << 22, "g")) <= 15


@pytest.mark.parametrize("link", ["zl-b", "zl-", "-b", "br-zl-x-b", "zl-x-g", "zl-x-b0", "docker0", ""])
def test_other_links_are_not_bridges(link: str) -> None:
    assert not names.is_bridge_name(link)
