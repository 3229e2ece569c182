# cython: language_level=3, wraparound=False, cdivision=True
"""A map from IP prefixes to values that answers with the longest prefix that contains an address.

Owns: the trie.  Must not know: what the values are (peers, for the daemon), or how an address is written as text.

Two path-compressed binary tries, one an IP version, in one array of 32-byte nodes; 32-bit indices instead of pointers
keep a node to half a cache line, and freeing all of them is one `free`.  Keys of both versions are 128 bits,
left-aligned.

Each version has a root table once it has enough prefixes to pay for it.  A cluster's prefixes agree in their first bits
(10.200.0.0/16, fd00:1::/48), so the table starts behind the bits that they share: its slots are for what an address has
there.  Prefixes that end before that contain all others; an address that differs before that is for them alone, and is
looked up in the trie.

Values live in a Python list beside the node array, under the same index, so that the garbage collector sees them
without help and reference counts are Python's business.  This list keeps its bounds checks: the collector may empty it
when it breaks a cycle through this object, and a finaliser may still ask afterwards.

Not thread-safe beyond what the GIL gives.  Making a list or a tuple can run the collector, and that any finaliser: what
lists the trie makes the list before it looks at a node, and checks after each tuple that the trie is still the same.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from types import GenericAlias

cdef extern from *:
    int count_leading_zeros "__builtin_clzll"(unsigned long long) noexcept nogil  # undefined for 0

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    int PyList_SetSlice(list items, Py_ssize_t low, Py_ssize_t high, PyObject *replacement) except -1

cdef enum:
    NONE = 0  # no node: index 0 is never used
    DEEPEST = 129  # nodes on one path: prefix lengths 0 to 128, each at most once
    # Our own constants.
    FIRST_NODES = 16  # room of the first node array; it doubles
    TABLE_FROM = 256  # prefixes from which a table is worth it; it has two to four slots of 8 bytes for each
    MOST_BITS = 20  # of an address that a table looks at

cdef uint64_t FULL = ~<uint64_t>0

cdef struct Key:
    uint64_t high
    uint64_t low

cdef struct Node:
    Key key  # bits from `length` on are zero
    uint32_t child[2]  # by the bit behind the prefix; child[0] chains free nodes
    uint8_t length
    uint8_t held  # has a value; else a branching point with two children

cdef struct Slot:
    uint32_t best  # the longest prefix that contains the slot, and has a value
    uint32_t top  # where the trie goes on: its first node inside the slot

cdef struct Table:
    Slot *slots  # or NULL
    Key stem  # what all prefixes begin with, as far as they are not shorter
    int start  # how many bits that are
    int end  # the slots are numbered by the bits from `start` on, up to this one


cdef inline int common_bits(Key a, Key b) noexcept:
    if a.high != b.high:
        return count_leading_zeros(a.high ^ b.high)
    if a.low != b.low:
        return 64 + count_leading_zeros(a.low ^ b.low)
    return 128


cdef inline int bit(Key key, int i) noexcept:
    """Bit i of the key, 0 the highest; 0 for i = 128, where no node has children."""
    if i < 64:
        return key.high >> (63 - i) & 1
    return key.low >> (127 - i) & 1 if i < 128 else 0


cdef inline Key masked(Key key, int length) noexcept:
    if length == 0:
        key.high = 0
    elif length < 64:
        key.high &= FULL << (64 - length)
    if length <= 64:
        key.low = 0
    elif length < 128:
        key.low &= FULL << (128 - length)
    return key


cdef inline uint32_t slot_of(const Table *table, Key key) noexcept:
    """The bits of a key that number its slot.  A table has at least one."""
    cdef uint64_t bits
    if table.start == 0:
        bits = key.high
    elif table.start < 64:
        bits = key.high << table.start | key.low >> (64 - table.start)
    else:
        bits = key.low << (table.start - 64)
    return bits >> (64 - (table.end - table.start))


cdef inline uint64_t big_endian(const uint8_t *p, int n) noexcept:
    cdef uint64_t value = 0
    cdef int i
    for i in range(n):
        value = value << 8 | p[i]
    return value


cdef inline int width_of(bytes packed) except -1:
    """Bits of an address: 32 or 128."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(packed)
    if size != 4 and size != 16:
        raise ValueError(f"a packed address has 4 or 16 bytes, not {size}")
    return <int>size * 8


cdef inline int check_length(int prefix_len, int width) except -1:
    if prefix_len < 0 or prefix_len > width:
        raise ValueError(f"prefix length {prefix_len} is not within 0 to {width}")
    return 0


cdef inline Key key_of(bytes packed, int width) noexcept:
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(packed)
    cdef Key key
    if width == 32:
        key.high = big_endian(p, 4) << 32
        key.low = 0
    else:
        key.high = big_endian(p, 8)
        key.low = big_endian(p + 8, 8)
    return key


cdef bytes packed_of(Key key, int width):
    cdef bytes packed = PyBytes_FromStringAndSize(NULL, width // 8)
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(packed)
    cdef int i
    for i in range(width // 8):
        p[i] = <uint8_t>((key.high if i < 8 else key.low) >> (56 - i % 8 * 8))
    return packed


cdef void set_slots(Table *table, Key key, int length, uint32_t best) noexcept:
    """Have a prefix, of at most `end` bits, be the best one of all its slots, as if nothing were inside."""
    cdef uint32_t first = 0, count = <uint32_t>1 << (table.end - max(length, table.start)), i
    if length > table.start:
        first = slot_of(table, key)
    for i in range(first, first + count):
        table.slots[i].best = best
        table.slots[i].top = NONE


@cython.final
cdef class AllowedIPs:
    cdef Node *nodes
    cdef list values  # by node index
    cdef uint32_t used, room  # of the node array: indices handed out so far, and its size
    cdef uint32_t spare  # head of the chain of free nodes
    cdef uint32_t roots[2]  # IPv4, IPv6
    cdef Py_ssize_t counts[2]
    cdef Table tables[2]
    cdef uint64_t changes  # how often the trie has changed

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self):
        self.values = [None]
        self.used = 1

    def __dealloc__(self):
        self.free_memory()

    def __len__(self):
        return self.counts[0] + self.counts[1]

    def __iter__(self):
        cdef list found = []
        cdef uint64_t changes = self.changes
        self.add_below(found, self.roots[0], 32, changes)
        self.add_below(found, self.roots[1], 128, changes)
        return iter(found)

    def insert(self, bytes packed not None, int prefix_len, value):
        cdef int width = width_of(packed), shared = 0
        cdef uint32_t *link
        cdef uint32_t added, branch
        cdef Node *node = NULL
        if value is None:
            raise ValueError("None cannot be a value: it is the answer for nothing")
        check_length(prefix_len, width)
        cdef Key key = masked(key_of(packed, width), prefix_len)
        self.reserve()  # no pointer into the array lives across this
        link = &self.roots[width == 128]
        while link[0] != NONE:
            node = &self.nodes[link[0]]
            shared = min(common_bits(key, node.key), prefix_len, node.length)
            if shared < node.length:
                break
            if shared == prefix_len:
                previous = self.values[link[0]]
                self.values[link[0]] = value
                if not node.held:
                    node.held = True
                    self.changed(width, key, prefix_len, 1)
                return previous
            link = &node.child[bit(key, node.length)]
        added = self.take_node(key, prefix_len)
        self.nodes[added].held = True
        self.values[added] = value
        if link[0] == NONE:
            link[0] = added
        elif shared == prefix_len:
            self.nodes[added].child[bit(node.key, shared)] = link[0]
            link[0] = added
        else:
            branch = self.take_node(masked(key, shared), shared)
            self.nodes[branch].child[bit(node.key, shared)] = link[0]
            self.nodes[branch].child[bit(key, shared)] = added
            link[0] = branch
        self.changed(width, key, prefix_len, 1)
        return None

    def remove(self, bytes packed not None, int prefix_len):
        cdef int width = width_of(packed)
        check_length(prefix_len, width)
        cdef Key key = masked(key_of(packed, width), prefix_len)
        cdef uint32_t *link = &self.roots[width == 128]
        cdef uint32_t *above = NULL  # the link to the node that holds `link`
        cdef Node *node
        while True:
            if link[0] == NONE:
                return None
            node = &self.nodes[link[0]]
            if node.length > prefix_len or common_bits(key, node.key) < node.length:
                return None
            if node.length == prefix_len:
                break
            above = link
            link = &node.child[bit(key, node.length)]
        if not node.held:
            return None
        value = self.values[link[0]]
        self.values[link[0]] = None
        node.held = False
        if node.child[0] == NONE or node.child[1] == NONE:
            self.splice(link)
            # A branching point that has lost one of its two children is none any more.
            if link[0] == NONE and above != NULL and not self.nodes[above[0]].held:
                self.splice(above)
        self.changed(width, key, prefix_len, -1)
        if self.counts[0] + self.counts[1] == 0:
            PyList_SetSlice(self.values, 1, PY_SSIZE_T_MAX, NULL)
            self.free_memory()
        return value

    def exact(self, bytes packed not None, int prefix_len):
        cdef int width = width_of(packed)
        check_length(prefix_len, width)
        cdef Key key = masked(key_of(packed, width), prefix_len)
        cdef uint32_t at = self.first_within(key, prefix_len, width)
        return self.values[at] if at != NONE and self.nodes[at].length == prefix_len else None

    def lookup(self, bytes packed not None):
        cdef int width = width_of(packed)
        cdef Key key = key_of(packed, width)
        cdef const Table *table = &self.tables[width == 128]
        cdef uint32_t at = self.roots[width == 128], best = NONE
        cdef Node *node
        if table.slots != NULL and common_bits(key, table.stem) >= table.start:
            at = slot_of(table, key)
            best = table.slots[at].best
            at = table.slots[at].top
        while at != NONE:
            node = &self.nodes[at]
            if common_bits(key, node.key) < node.length:
                break
            if node.held:
                best = at
            at = node.child[bit(key, node.length)]
        return self.values[best]

    def covering(self, bytes packed not None, int prefix_len):
        cdef int width = width_of(packed)
        check_length(prefix_len, width)
        cdef Key key = key_of(packed, width)
        cdef list found = []
        cdef uint64_t changes = self.changes
        cdef uint32_t at = self.roots[width == 128], here
        cdef Node *node
        while at != NONE:
            node = &self.nodes[at]
            if node.length > prefix_len or common_bits(key, node.key) < node.length:
                break
            here = at
            at = node.child[bit(key, node.length)]
            if node.held:
                self.add_entry(found, here, width, changes)
        return found

    def within(self, bytes packed not None, int prefix_len):
        cdef int width = width_of(packed)
        check_length(prefix_len, width)
        cdef list found = []
        self.add_below(found, self.first_within(key_of(packed, width), prefix_len, width), width, self.changes)
        return found

    cdef uint32_t first_within(self, Key key, int prefix_len, int width) noexcept:
        """The topmost node inside the prefix, NONE when there is none."""
        cdef uint32_t at = self.roots[width == 128]
        cdef Node *node
        while at != NONE:
            node = &self.nodes[at]
            if common_bits(key, node.key) < min(<int>node.length, prefix_len):
                return NONE
            if node.length >= prefix_len:
                return at
            at = node.child[bit(key, node.length)]
        return NONE

    cdef int add_below(self, list found, uint32_t top, int width, uint64_t changes) except -1:
        """Append the entries of the subtrie, in order of address, then of length.

        `top` must come from the trie as it was at `changes`: so `found` is made before, which can run the collector.
        """
        cdef uint32_t stack[DEEPEST + 1]  # one node is popped for every two pushed: at most one more a level
        cdef int depth = 0, i
        cdef Node *node
        if top != NONE:
            stack[0] = top
            depth = 1
        while depth:
            depth -= 1
            top = stack[depth]
            node = &self.nodes[top]
            for i in range(1, -1, -1):
                if node.child[i] != NONE:
                    stack[depth] = node.child[i]
                    depth += 1
            if node.held:
                self.add_entry(found, top, width, changes)
        return 0

    cdef int add_entry(self, list found, uint32_t at, int width, uint64_t changes) except -1:
        cdef Node node
        cdef object value
        if self.changes == changes:
            node, value = self.nodes[at], self.values[at]
            found.append((packed_of(node.key, width), node.length, value))
        if self.changes != changes:
            raise RuntimeError("allowed IPs changed while they were listed")
        return 0

    cdef int reserve(self) except -1:
        """Make room for the two nodes that one insertion can take, in the array and in the list."""
        cdef Node *larger
        cdef uint32_t room
        if self.used + 2 > self.room:
            room = max(2 * self.room, <uint32_t>FIRST_NODES)
            larger = <Node *>realloc(self.nodes, room * sizeof(Node))
            if larger == NULL:
                raise MemoryError
            self.nodes = larger
            self.room = room
        while <uint32_t>len(self.values) < self.used + 2:
            self.values.append(None)
        return 0

    cdef uint32_t take_node(self, Key key, int length) noexcept:
        cdef uint32_t at = self.spare
        cdef Node *node
        if at != NONE:
            self.spare = self.nodes[at].child[0]
        else:
            at = self.used
            self.used += 1
        node = &self.nodes[at]
        node.key = key
        node.child[0] = node.child[1] = NONE
        node.length = length
        node.held = False
        return at

    cdef void splice(self, uint32_t *link) noexcept:
        """Replace a node that has at most one child by that child."""
        cdef uint32_t at = link[0]
        cdef Node *node = &self.nodes[at]
        link[0] = node.child[0] if node.child[0] != NONE else node.child[1]
        node.child[0] = self.spare
        self.spare = at

    cdef void changed(self, int width, Key key, int prefix_len, int difference) noexcept:
        """Count an entry that came or went, and keep the table in step with it."""
        cdef int version = width == 128
        cdef Table *table = &self.tables[version]
        self.changes += 1
        self.counts[version] += difference
        if table.slots == NULL:
            if difference > 0 and self.counts[version] >= TABLE_FROM:
                self.make_table(version, width)
        elif difference > 0 and (
            common_bits(key, table.stem) < min(prefix_len, table.start)
            or self.counts[version] > 1 << (table.end - table.start) and table.end - table.start < MOST_BITS
            and table.end < width
        ):
            if self.counts[version] >= TABLE_FROM:
                self.make_table(version, width)
            else:  # most have gone since it was made
                free(table.slots)
                table.slots = NULL
        else:
            self.fill_table(version, key, prefix_len)

    cdef void make_table(self, int version, int width) noexcept:
        """Make the table anew, of a size for the prefixes that there are, TABLE_FROM at least; without memory there is
        none, which only costs time.
        """
        cdef Table *table = &self.tables[version]
        cdef uint32_t at = self.roots[version]
        cdef Node *node = &self.nodes[at]
        cdef int bits = min(65 - count_leading_zeros(self.counts[version]), <int>MOST_BITS)
        free(table.slots)
        while node.child[0] == NONE or node.child[1] == NONE:  # TABLE_FROM branch somewhere: on one path are 129 at most
            node = &self.nodes[node.child[0] if node.child[0] != NONE else node.child[1]]
        table.stem = node.key
        table.start = node.length
        table.end = min(table.start + bits, width)
        table.slots = <Slot *>calloc(1 << (table.end - table.start), sizeof(Slot))
        if table.slots != NULL:
            self.fill_table(version, node.key, 0)

    cdef void free_memory(self) noexcept:
        free(self.nodes)
        free(self.tables[0].slots)
        free(self.tables[1].slots)
        self.nodes = NULL
        self.tables[0].slots = self.tables[1].slots = NULL
        self.used = 1
        self.room = self.spare = 0

    cdef void fill_table(self, int version, Key key, int prefix_len) noexcept:
        """Recompute the slots that a prefix touches: down the path to it, then over the subtrie, parents first."""
        cdef Table *table = &self.tables[version]
        cdef uint32_t stack[DEEPEST + 1]
        cdef uint32_t at = self.roots[version], best = NONE
        cdef int depth = 0, i, bits = min(prefix_len, table.end)
        cdef Node *node
        key = masked(key, bits)
        while at != NONE and self.nodes[at].length < bits:
            node = &self.nodes[at]
            if common_bits(key, node.key) < node.length:
                at = NONE
                break
            if node.held:
                best = at
            at = node.child[bit(key, node.length)]
        set_slots(table, key, bits, best)
        if at != NONE and common_bits(key, self.nodes[at].key) >= bits:
            stack[0] = at
            depth = 1
        while depth:
            depth -= 1
            at = stack[depth]
            node = &self.nodes[at]
            if node.length >= table.end:
                table.slots[slot_of(table, node.key)].top = at
                continue
            if node.held:
                set_slots(table, node.key, node.length, at)
            for i in range(2):
                if node.child[i] != NONE:
                    stack[depth] = node.child[i]
                    depth += 1
