"""A second pair of eyes on this node: `overlayctl inspect`.

Owns: what of ours the kernel shows, read by pyroute2 and not by our own codec, and its comparison with the journal.
Must not know: the daemon, which may be dead; `linux`, which it is here to contradict.  Changes nothing.
"""
