"""Who holds a network namespace, and what becomes of the claim."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from throwaway import Namespace

from overlayd.linux.claim import NamespaceInUse, claim_namespace

HOLD = """
from overlayd.linux.claim import claim_namespace
claim = claim_namespace()
print("claimed", flush=True)
input()
"""


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace() as made, made.entered():
        yield made


def test_one_claim_at_a_time_and_the_holder_is_named(space: Namespace) -> None:
    argv = [sys.executable, "-c", HOLD]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(NamespaceInUse) as taken:
            claim_namespace()
        assert f"pid {holder.pid} uid {os.getuid()} ({sys.executable} -c " in str(taken.value)
        holder.kill()
        holder.wait()
        claim_namespace().close()


def test_it_goes_with_its_socket_and_is_no_rule(space: Namespace) -> None:
    for _ in range(3):
        with claim_namespace(), pytest.raises(NamespaceInUse):
            claim_namespace()
    with claim_namespace():
        space.nft("flush ruleset")
        assert space.nft("list ruleset") == ""
        with pytest.raises(NamespaceInUse):
            claim_namespace()


def test_another_namespace_is_another_claim(space: Namespace) -> None:
    with claim_namespace(), Namespace() as other, other.entered():
        claim_namespace().close()


def test_who_may_not_administer_the_network_can_neither_claim_nor_block(space: Namespace) -> None:
    argv = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-c", HOLD]
    done = subprocess.run(argv, capture_output=True, text=True, input="\n", check=False)
    assert done.returncode
    assert "MechanismError: claim network namespace: Operation not permitted" in done.stderr
    claim_namespace().close()
