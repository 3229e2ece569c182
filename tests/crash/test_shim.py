"""A sample of the deaths of a daemon that a container runtime calls; `make crash` has all of them.  And a reboot."""

import random
from typing import Any

import pytest
from cni.shim import Ended, finish

from crash import shim
from crash.cell import Cell, inside
from crash.scenarios import FIRST, SECOND
from crash.view import rows

SEED, CHOSEN = 1, 8  # trials of each act


@pytest.mark.parametrize("act", shim.ACTS)
def test_a_runtime_that_tries_again_gets_what_it_began(act: str) -> None:
    known = shim.undisturbed(act)
    found = shim.trials(known)
    assert {"killed", "refused"} == {how for how, _ in found}
    for how, point in random.Random(SEED).sample(found, min(CHOSEN, len(found))):
        problems = shim.HOW[how](act, point, known)
        assert not problems, "\n   ".join((f"{act}, {how} at {point}, of {len(found)}", *problems))


def leases(cell: Cell) -> dict[str, str]:
    """Who holds which address, in the journal."""
    found = {key: row for key, row in rows(cell).items() if key.startswith("lease ") and row.get("holder")}
    return {row["holder"]: row["address"] for row in found.values()}


def test_no_address_survives_a_reboot() -> None:
    """The namespaces are gone with the boot; the runtime calls DEL for some, ADD for others, and forgets the rest."""

    def work(cell: Cell) -> dict[str, Any]:
        shim.prepare(cell, shim.Act(lambda: shim.call("ADD"), [FIRST, SECOND]))
        before = leases(cell)
        cell.reboot()
        cell.start()
        after = leases(cell)
        deleted = finish(shim.call("DEL", FIRST))
        cell.start_container(SECOND)
        added = finish(shim.call("ADD", SECOND))
        return {"before": before, "after": after, "deleted": deleted, "added": added, "now": leases(cell)}

    found = inside(work)
    handles = {f"netns:c{pid}/eth0" for pid in (FIRST, SECOND)}
    assert set(found["before"]) == handles
    assert not handles & set(found["after"])
    assert Ended(*found["deleted"]) == (0, "")
    added = Ended(*found["added"])
    assert added.exit == 0, added.stdout
    address = added.told["ips"][0]["address"].partition("/")[0]
    assert found["now"] == {f"netns:c{SECOND}/eth0": address}
