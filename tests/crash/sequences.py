"""Random requests, deaths, restarts and reboots, the daemon killed at random points, against the model.

Owns: the choice of what happens, from a seed.  Must not know: what it means; `model` does.

A seed repeats what is chosen for as long as the outcome is the same; of requests that are sent at once, it depends on
the machine who comes first.
"""

from random import Random
from typing import Any

from crash.cell import Cell, inside
from crash.damage import DAMAGES, DISPLACEMENTS
from crash.model import Model
from crash.planted import BUGS
from crash.scenarios import KEYS, Step, attach, detach, enter, leave, overlay, peer, service, step
from crash.shown import seen
from crash.shown import view as shown
from crash.together import Answer, Sent, explanations, overtakes
from crash.trial import perform, perform_together
from crash.view import View, difference, take

LENGTH = 50
TOGETHER = 0.3  # how often several requests at once come before a step
MOST_TOGETHER = 5  # the search for their order grows with the factorial
CONTAINERS = range(30001, 30007)
NAMESPACES = range(30007, 30010)  # containers that are attached by their namespace
SERVICES = ("v", "w", "x", "d", "e", "s")
SLICE = "s"  # for the most part the service of the slice
DEDICATED = ("d", "e")  # for the most part
GUESTS = ("guest_managed", "host_shared")
IDS = ("i", "j")  # of guests and of edge peers
OPENING = (overlay(), service("w"), service("d", mode="dedicated"))  # without them most requests are refused
NETWORKS = ("10.200.1.0/26", "10.200.7.0/24", "10.200.7.0/25", "10.200.8.0/24", "10.201.0.0/16", "0.0.0.0/0")
PORTS = (51820, 51821)
NAMED = ("10.200.1.9", "10.200.1.2", "fd00::9")  # the second one is of the node's pool, and may lose its holder
GRANTS = (
    [],
    ["w"],
    ["d", "v", "10.200.8.0/24"],
    ["w", "10.200.0.0/16"],
    ["10.200.8.0/24", "10.200.7.0/25", "10.200.7.128/25"],
)
# Passages of fault points that a daemon survives: on average six or seven requests.
LONGEST_LIFE = 100
LOOK_EVERY = 10  # steps, beside the looks after every death


def run(seed: int, bug: str = "") -> list[str]:
    """One sequence in a cell of its own; returns what was found wrong, and nothing else.  bug: one that is planted."""

    def work(cell: Cell) -> list[str]:
        if bug:
            cell.plant(BUGS[bug])
        return _Sequence(cell, seed).run()

    result: list[str] = inside(work)
    return result


class _Sequence:
    def __init__(self, cell: Cell, seed: int) -> None:
        self.cell = cell
        self.random = Random(seed)
        self.told: list[str] = []  # what has happened
        self.model = Model()

    def run(self) -> list[str]:
        self._revive()
        self._start()
        problems: list[str] = []
        for first in OPENING:
            problems = problems or self._happen(first)
        for number in range(LENGTH):
            if not problems and self.random.random() < TOGETHER:
                problems = self._happen_together(self._choose_several())
            problems = problems or self._happen(self._choose())
            if not problems and self.cell.daemon and number % LOOK_EVERY == 0:
                problems = self._compare(self.model)
            if problems:
                return [*problems, *self.told, self.cell.last_words()]
        return []

    def _happen(self, step: Step) -> list[str]:
        before = self.model
        after, expected = before.after(step)
        self.told.append(f"{step}: {expected}")
        answer = perform(self.cell, step, self._fault())
        if answer is not None and _without_message(answer) != expected:
            return [f"{step}: expected {expected}, got {answer}"]
        certain = answer is not None or step["op"].startswith("!")
        possible = before.after_death(step["pid"]) if step["op"] == "!die" else [after]
        self.model = after
        if self.cell.ended():
            self.told.append("the daemon is dead")
            self._revive()
            self._start()
        elif len(possible) == 1:
            return []
        return self._settle(possible if certain else [before, *possible])

    def _happen_together(self, sent: list[Sent]) -> list[str]:
        self.told.append("together:")
        answers = [
            Answer(answer.place, _without_message(answer.said)) if answer else None
            for answer in perform_together(self.cell, sent)
        ]
        for each, answer in zip(sent, answers, strict=True):
            self.told.append(f"   over {each.connection}: {each.step}: {answer.said if answer else 'no answer'}")
        possible = explanations(self.model, sent, answers)
        problems = overtakes(self.model, sent, answers)
        if not possible:
            problems.append("no order of the requests explains the answers")
        if problems:
            return problems
        if self.cell.ended():
            self.told.append("the daemon is dead")
            self._revive()
            self._start()
        return self._settle(possible)

    def _start(self) -> None:
        """Start the daemon until it listens."""
        while not self.cell.daemon and not self.cell.start(self._fault()):
            self.told.append("the daemon died at its start")

    def _settle(self, possible: list[Model]) -> list[str]:
        """Find out in which of the states that are possible the daemon is."""
        for model in possible:
            model.containers = set(self.model.containers)
        found = None
        while found is None:
            found = self._take()
        nearest = min(possible, key=lambda model: len(difference(shown(model), found)))
        self.model = nearest
        return difference(shown(nearest), found)

    def _compare(self, model: Model) -> list[str]:
        found = self._take()
        return [] if found is None else difference(shown(model), found)

    def _take(self) -> View | None:
        """The view, None when the daemon died of it; then there is a new one."""
        try:
            return seen(take(self.cell, KEYS))
        except RuntimeError:
            if not self.cell.ended():
                raise
            self.told.append("the daemon died while nobody asked")
            self._start()
            return None

    def _revive(self) -> None:
        """Containers start while no daemon runs, some with the process number of one that died."""
        for pid in (*CONTAINERS, *NAMESPACES):
            if pid not in self.cell.containers:
                self.cell.start_container(pid)
                self.model.containers.add(pid)

    def _fault(self) -> str:
        return f"*:{self.random.randint(1, LONGEST_LIFE)}" if self.random.random() < 0.8 else ""

    def _choose_several(self) -> list[Sent]:
        """Requests that are sent at once, over one connection or some."""
        sent: list[Sent] = []
        connections, number = self.random.randint(1, 3), self.random.randint(3, MOST_TOGETHER)
        while len(sent) < number:
            step = self._choose()
            if not step["op"].startswith("!") and step["op"] != "shutdown":
                sent.append(Sent(self.random.randint(1, connections), step))
        return sent

    def _choose(self) -> Step:
        random, model = self.random, self.model
        down = not model.overlay or not model.overlay["up"]
        pid, key = random.choice(CONTAINERS), random.choice(sorted(KEYS))
        inside, ifname = random.choice(NAMESPACES), random.choice(("net0", "net1"))
        mortal = random.choice((pid, inside))
        name = random.choice([*SERVICES, *model.services, *model.services])
        network, id = random.choice(NETWORKS), random.choice(IDS)
        modes = ("auto", *["dedicated"] * 3) if name in DEDICATED else ("auto", "shared", "isolated")
        subnet = {"subnet": "10.200.1.0/24"} if name == SLICE and random.random() < 0.8 else {}
        guest = {"platform": random.choice(GUESTS), "id": id}
        scope: dict[str, Any] = {}
        if random.random() < 0.4:
            scope = {"scope": {"scope": "service", "service": random.choice(("d", "d", "d", "e", "v"))}}
        made: list[tuple[int, Any]] = [
            (2, lambda: step("set_local_node_id", node_id=random.randint(0, 3))),
            (1, lambda: step("set_local_wg_pubkey", pubkey=key)),
            (60 if down else 6, lambda: overlay(instance_id=random.choice("12"), wg_port=random.choice(PORTS))),
            (1, lambda: step("teardown_global_overlay")),
            (1, lambda: step("shutdown")),
            (10, lambda: service(name, mode=random.choice(modes), **subnet)),
            (2, lambda: step("teardown_service_overlay", service=name)),
            (4, lambda: step("allocate_ip", service=random.choice((*SERVICES, "")), join_global=False)),
            (4, lambda: step("release_ip", ip=random.choice([*model.leases, "10.200.3.3"]))),
            (20, lambda: attach(pid, name, **self._options())),
            (10, lambda: detach(pid)),
            (10, lambda: enter(inside, name, ifname, default_route=ifname == "net0", **self._options())),
            (5, lambda: leave(inside, ifname)),
            (5, lambda: attach(pid, name, **{**self._options(), "handle": guest})),
            (3, lambda: step("detach_container", handle=guest)),
            (9, lambda: peer(key, random.choice((network, f"{network},10.200.9.0/24")), **scope)),
            (3, lambda: step("remove_peer", pubkey=key, **scope)),
            (5, lambda: step("add_allowed_ip", pubkey=key, cidr=network, **scope)),
            (4, lambda: step("remove_allowed_ip", pubkey=key, cidr=network, **scope)),
            (3, lambda: step("mint_edge_peer", name=id, ttl_secs=3600, allow=random.choice(GRANTS))),
            (2, lambda: step("revoke_edge_peer", name=id)),
            (1, lambda: step("prune_orphan_bridges", live_bridge_names=[f"zl-c-1-{each}-b" for each in SERVICES[:3]])),
            (2, lambda: step("!restart")),
            (1, lambda: step("!reboot")),
            (1, lambda: step("!teardown")),
            (3, lambda: step("!damage", what=random.choice(list(DAMAGES)))),
            (2, lambda: step("!displace", how=random.choice(list(DISPLACEMENTS)))),
            (2, lambda: step("register_dns", name=random.choice(("a", "b")), ip=random.choice(NAMED))),
            (1, lambda: step("unregister_dns", name="a")),
            (1, lambda: step("unregister_dns", name="b", ip=random.choice(NAMED))),
        ]
        if not down:
            made.append((1, lambda: step("!stranger")))
        if mortal in self.cell.containers:
            made += [(2, lambda: step("!die", pid=mortal)), (2, lambda: step("!orphan", pid=mortal))]
        weights, choices = zip(*made, strict=True)
        chosen: Step = random.choices(choices, weights)[0]()
        return chosen

    def _options(self) -> dict[str, Any]:
        random = self.random
        options: dict[str, Any] = {"join_global": random.random() < 0.3, "ephemeral": random.random() < 0.3}
        if random.random() < 0.4:
            options["isolation_network"] = random.choice(("red", "blue"))
        return options


def _without_message(answer: dict[str, Any]) -> dict[str, Any]:
    """The model does not know the words of an `err`."""
    return {"result": "err"} if answer["result"] == "err" else answer
