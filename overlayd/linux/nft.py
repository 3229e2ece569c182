"""nftables in process.

Rules and listings go through libnftables.  Elements do not: whatever it adds, libnftables (1.0.6) first reads all
tables, and the members of every interval set on the host, whoever owns it.  They have a codec of their own,
`linux.setelem`.

Owns: the binding, and the life of our two tables in the kernel.  Must not know: what the rules mean (`model.ruleset`),
or when to change them.
"""

import ctypes
import os
import threading
from collections.abc import Hashable, Iterable, Sequence
from errno import EEXIST, ENOENT, errorcode

import orjson

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.linux import netlink, setelem
from overlayd.model import firewall, ruleset
from overlayd.model.objects import NFT_TABLE, Element, Step

# include/nftables/libnftables.h: NFT_CTX_OUTPUT_*
_STATELESS = 1 << 2
_JSON = 1 << 4
_NUMERIC_SYMBOL = 1 << 9
_TERSE = 1 << 11

# Two calls, not one: libnftables 1.0.6 reads only the last table that a script lists.
_LIST_OURS = (f"list table inet {NFT_TABLE}", f"list table bridge {NFT_TABLE}")

_ERRNO = {os.strerror(number): number for number in errorcode}  # libnftables gives the kernel's errors as words only

# Our own: listings until two in a row agree.  The kernel is done in milliseconds; others may change members meanwhile.
_LISTINGS = 16

# One call into the library at a time, whatever the context: it caches the names of interfaces for the whole process
# (src/iface.c, up to at least 1.0.6), and two threads that drop the cache free it twice.
_LIBRARY = threading.Lock()


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise MechanismError("load", "libnftables.so.1", detail=f"{error}; install libnftables1") from error
    context = ctypes.c_void_p
    for name, result, arguments in (
        ("nft_ctx_new", context, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [context]),
        ("nft_ctx_buffer_output", ctypes.c_int, [context]),
        ("nft_ctx_buffer_error", ctypes.c_int, [context]),
        ("nft_ctx_get_output_buffer", ctypes.c_char_p, [context]),
        ("nft_ctx_get_error_buffer", ctypes.c_char_p, [context]),
        ("nft_ctx_output_set_flags", None, [context, ctypes.c_uint]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [context, ctypes.c_char_p]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Nft:
    """The nftables of one network namespace: that of the thread which makes the instance, whoever calls it later.

    Any thread may call; calls wait for each other, as transactions do in the kernel: changes of members for those of
    the same instance, all others for those of every instance.  Every method raises MechanismError, with the kernel's
    errno and libnftables' message, when the kernel or the parser refuses.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._lock = threading.Lock()
        self._installed = ""  # our tables as listed right after ensure(), without elements
        # Both open a netlink socket, and with it the namespace.
        with _LIBRARY:
            self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise MechanismError("open", "nftables")
        self._netlink = netlink.connected(netlink.NETLINK_NETFILTER)
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Free the context and the netlink sockets; the tables stay."""
        with self._lock, _LIBRARY:
            self._netlink.close()
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, script: str) -> str:
        """Run a script in nft syntax as one transaction; returns what it prints."""
        return self._run(script, 0)

    def ensure(self, members: Iterable[Element] = ()) -> None:
        """Make our tables, or put their rules back, with `members` in the same transaction; other elements stay.

        Tables that do not take them, made by another version with sets of other types or holding another value for a
        member, are replaced and lose their other elements: observe() after this.
        """
        fault.point("nft:ensure")
        script = ruleset.with_members(members)
        try:
            self._run(script, 0)
        except MechanismError:
            self._run(ruleset.removed() + script, 0)
        fault.point("nft:ensured")
        self._installed = self._rules()

    def apply(self, steps: Sequence[Step]) -> None:
        """Do `steps`, each about an Element, in one transaction: all or none.

        What a step wants gone may be gone already, and what it wants added may be there.
        """
        try:
            self._change(ruleset.changes(steps))
        except MechanismError as error:
            if error.errno not in (ENOENT, EEXIST):
                raise
            # Somebody changed members behind our back: do the same from what is really there.
            have = self.observe()
            wanted = {element.key: step.want for step in steps if (element := step.want or step.have)}
            steps = [Step(have.get(key), want) for key, want in wanted.items()]
            self._change(ruleset.changes(steps))

    def observe(self) -> dict[Hashable, Element]:
        """Every element of our sets and maps, by key; a table that is missing has none."""
        found: dict[Hashable, Element] = {}
        for command in _LIST_OURS:
            try:
                listing = self._stable(command)
            except MechanismError as error:
                if error.errno != ENOENT:
                    raise
            else:
                found |= ruleset.elements(orjson.loads(listing))
        return found

    def intact(self) -> bool:
        """Whether tables, chains, sets and rules are as ensure() left them; elements are not read."""
        return bool(self._installed) and self._rules() == self._installed

    def teardown(self) -> None:
        """Remove both tables; fine when there are none."""
        self._run(ruleset.removed(), 0)

    def chains(self) -> firewall.Ruleset:
        """The chains and rules of every table, whoever owns it; of sets only the names."""
        return firewall.read(orjson.loads(self._run("list ruleset", _JSON | _TERSE | _NUMERIC_SYMBOL)))

    def _change(self, changes: list[ruleset.Change]) -> None:
        with self._lock:
            setelem.transact(self._netlink, changes)

    def _rules(self) -> str:
        """Our tables as nft writes them, without elements; a table that is missing is left out.

        Cut out of the whole ruleset, the one listing for which libnftables 1.0.6 does not fetch the elements all the
        same.
        """
        text = "\n" + self._run("list ruleset", _TERSE | _STATELESS)
        heads = (f"\ntable {family} {NFT_TABLE} {{\n" for family in ("inet", "bridge"))
        return "".join(text[start : text.index("\n}", start)] for head in heads if (start := text.find(head)) >= 0)

    def _stable(self, command: str) -> str:
        """A listing with elements that came out twice in a row, or the last of _LISTINGS.

        The kernel moves the elements of a set that has grown or shrunk to a larger or smaller hash table in its own
        time, and a listing goes by position in it, a part at a time: what moves between two parts is passed over
        (nft_rhash_walk() in net/netfilter/nft_set_hash.c), and nothing tells.  Seen: 500 elements of 5,000.
        """
        text = self._run(command, _JSON)
        for _ in range(_LISTINGS - 1):
            before, text = text, self._run(command, _JSON)
            if text == before:
                break
        return text

    def _run(self, script: str, flags: int) -> str:
        with _LIBRARY:
            self._library.nft_ctx_output_set_flags(self._context, flags)
            status = self._library.nft_run_cmd_from_buffer(self._context, script.encode())
            # Both buffers are emptied by reading them.
            output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
            message = self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace").strip()
        if status != 0:
            raise MechanismError("run", "nftables script", _errno(message), message[:2000])
        return output.decode()


def _errno(message: str) -> int:
    """The errno that libnftables put into words in the first line of its message; 0 for what is not the kernel's."""
    reason = message.partition("\n")[0].removeprefix("Error: ").removeprefix("Could not process rule: ")
    return _ERRNO.get(reason.partition("; did you mean")[0], 0)
