"""nftables by its own program.

Rules and their listings go through nft(8), a process for each, as its library ends the process that it is in when it
gets no descriptor or memory, prints to our stderr, and (1.0.6) damages the heap.  Elements do not: whatever it adds,
nft first reads all tables, and the members of every interval set on the host, whoever owns it.  They have a codec of
their own, `linux.setelem`.

Owns: running the program, and the life of our two tables in the kernel.  Must not know: what the rules mean
(`model.ruleset`), or when to change them.
"""

import logging
import os
import re
import subprocess
import threading
from collections.abc import Hashable, Iterable, Sequence
from errno import EAGAIN, EEXIST, ENOENT, ETIMEDOUT, errorcode
from pathlib import Path

import msgspec

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.linux import netlink, setelem
from overlayd.linux.netlink import Netlink
from overlayd.linux.threads import REMEDY
from overlayd.model import firewall, ruleset, set_changes
from overlayd.model.objects import NFT_TABLE, Element, Step

_log = logging.getLogger(__name__)

_ERRNO = {os.strerror(number): number for number in errorcode}  # nft gives the kernel's errors as words only
_CHAIN = re.compile(r"^\s+chain (\S+) \{", re.MULTILINE)
_REASON = re.compile(r"(?:\S+: )?Error: (?:Could not process rule: )?(.*?)(?:; did you mean.*)?")

_DEADLINE = 60.0  # our own, seconds: transactions take milliseconds, and wait for those of others


class Nft:
    """The nftables of one network namespace: that of the thread which makes the instance, whoever calls it later.

    Any thread may call; changes of members wait for each other, and listings do.  Every method raises MechanismError,
    with the kernel's errno and nft's message, when the kernel or the parser refuses, or the program cannot be run.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of changes
        self._listing = threading.Lock()  # which takes longer than a change
        self._installed = ""  # our tables as listed right after ensure(), without elements
        self._netlink = netlink.connected(netlink.NETLINK_NETFILTER)
        self._lister = Netlink(netlink.NETLINK_NETFILTER)
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the socket and the namespace; the tables stay.  Idempotent."""
        with self._lock, self._listing:
            self._netlink.close()
            self._lister.close()
            if self._namespace >= 0:
                os.close(self._namespace)
                self._namespace = -1

    def run(self, script: str) -> str:
        """Run a script in nft syntax as one transaction; returns what it prints."""
        return self._run(script)

    def ensure(self, members: Iterable[Element] = ()) -> None:
        """Make our tables, or put their rules back, with `members` in the same transaction: no packet sees the rules
        without them.  Other elements stay.

        Tables that do not take them, made by another version with sets of other types or holding another value for a
        member, and those that have chains of somebody else are replaced and lose their other elements: observe() after
        this.
        """
        fault.point("nft:ensure")
        script = ruleset.with_members(members)
        try:
            self._run(script)
        except MechanismError:
            self._run(ruleset.removed() + script)
        fault.point("nft:ensured")
        installed = self._rules()
        if foreign := sorted(set(_CHAIN.findall(installed)) - set(_CHAIN.findall(script))):
            # A flush empties a chain, and leaves its hook and its policy.
            _log.warning("chains of somebody else in our tables are removed: %s", ", ".join(foreign))
            self._run(ruleset.removed() + script)
            installed = self._rules()
        self._installed = installed

    def apply(self, steps: Sequence[Step]) -> None:
        """Do `steps`, each about an Element, in one transaction: all or none.

        What a step wants gone may be gone already, and what it wants added may be there.
        """
        try:
            self._change(set_changes.changes(steps))
        except MechanismError as error:
            if error.errno not in (ENOENT, EEXIST):
                raise
            # Others changed members: do the same from what is really there.
            have = self.observe()
            wanted = {element.key: step.want for step in steps if (element := step.want or step.have)}
            steps = [Step(have.get(key), want) for key, want in wanted.items()]
            self._change(set_changes.changes(steps))

    def observe(self, sets: Iterable[tuple[str, str]] = ruleset.SETS) -> dict[Hashable, Element]:
        """Every element of these sets and maps of ours, by key; one that is missing has none."""
        with self._listing:
            return {each.key: each for family, name in sets for each in setelem.listed(self._lister, family, name)}

    def intact(self) -> bool:
        """Whether tables, chains, sets and rules are as ensure() left them; elements are not read."""
        return bool(self._installed) and self._rules() == self._installed

    def teardown(self) -> None:
        """Remove both tables; fine when there are none."""
        self._run(ruleset.removed())

    def chains(self) -> firewall.Ruleset:
        """The chains and rules of every table, whoever owns it; of sets only the names."""
        found = firewall.read(msgspec.json.decode(self._list("ruleset", "--json", "--terse", "--numeric")))
        if found.lacks_devices:  # nft 1.0.6 tells them in its text alone
            return firewall.with_devices(found, self._list("ruleset", "--terse", "--stateless"))
        return found

    def _change(self, changes: list[set_changes.Change]) -> None:
        with self._lock:
            setelem.transact(self._netlink, changes)

    def _rules(self) -> str:
        """Our tables as nft writes them, without elements; a table that is missing is left out.

        Cut out of the whole ruleset, the one listing for which nft 1.0.6 does not fetch the elements all the
        same.
        """
        text = "\n" + self._list("ruleset", "--terse", "--stateless")
        heads = (f"\ntable {family} {NFT_TABLE} {{\n" for family in ("inet", "bridge"))
        return "".join(text[start : text.index("\n}", start)] for head in heads if (start := text.find(head)) >= 0)

    def _run(self, script: str) -> str:
        return self._nft(["-f", "-"], script)

    def _list(self, what: str, *options: str) -> str:
        # As arguments: with --json it takes what is on its standard input for JSON, and reads that up in trying.
        return self._nft([*options, "list", *what.split()])

    def _nft(self, arguments: list[str], script: str = "") -> str:
        try:
            here = os.path.samestat(os.fstat(self._namespace), Path("/proc/thread-self/ns/net").stat())
            done = subprocess.run(
                [*([] if here else ["nsenter", f"--net=/proc/self/fd/{self._namespace}"]), "nft", *arguments],
                input=script.encode(),
                capture_output=True,
                pass_fds=() if here else (self._namespace,),
                timeout=_DEADLINE,
                check=False,
            )
        except FileNotFoundError as error:
            raise MechanismError("run", "nft", ENOENT, "install nftables") from error
        except subprocess.TimeoutExpired as error:
            raise MechanismError("run", "nft", ETIMEDOUT) from error
        except OSError as error:  # no descriptor, no memory, too many processes
            raise MechanismError("run", "nft", error.errno or 0, REMEDY if error.errno == EAGAIN else "") from error
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()
            how = f"exit code {done.returncode}" if done.returncode > 0 else f"ended by signal {-done.returncode}"
            raise MechanismError("run", "nftables script", _errno(message), message[:2000] or how)
        return done.stdout.decode()


def _errno(message: str) -> int:
    """The errno that nft put into words in the first line of its message; 0 for what is not the kernel's."""
    reason = _REASON.fullmatch(message.partition("\n")[0])
    return _ERRNO.get(reason[1], 0) if reason else 0
