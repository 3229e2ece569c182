"""Deliberate bugs, which the harness must find.

Owns: one function a bug, that breaks overlayd in the process that calls it.  Must not know: how it is found.
"""

BUGS = {}
