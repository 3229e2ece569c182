"""What is known of fault points by name.

Owns: those where only a death can happen.  Must not know: where they are.
"""

# No operation follows that could be refused.
CANNOT_FAIL = frozenset({"node:journaled", "node:applied", "journal:synced", "journal:checkpoint:done"})
