"""What the collector looks at, in a process of its own: it has one collector."""

import subprocess
import sys

SCRIPT = """
import gc, weakref
from overlayd.daemon import garbage

class Circle:
    def __init__(self):
        self.itself = self

garbage.postpone()
assert not gc.isenabled()
garbage.begin()
assert gc.isenabled()

most = []
gc.callbacks.append(lambda phase, about: most.append(len(gc.get_objects())) if phase == "start" else None)
lasting = [[] for _ in range(200_000)]
assert len(most) > 50, "it has looked"
assert max(most) < 40_000, "there is seldom much to look at"
gc.callbacks.pop()

with garbage.nothing_stays():
    gc.callbacks.append(lambda phase, about: most.append(len(gc.get_objects())) if phase == "start" else None)
    del most[:]
    passing = [[] for _ in range(200_000)]
    del passing
    gc.callbacks.pop()
    assert not most, "it has not looked"
assert gc.isenabled()

dropped = weakref.ref(Circle())
gc.collect()
assert dropped() is None, "garbage"

kept = Circle()
circle = weakref.ref(kept)
before = gc.get_freeze_count()
gc.collect()
assert gc.get_freeze_count() > before
assert all(each is not kept for each in gc.get_objects()), "it is not looked at again"
del kept
gc.collect()
assert circle() is not None

garbage.EVERYTHING = 0.0
gc.collect()
assert circle() is None, "nothing stays for ever"
"""


def test_what_lives_on_is_not_looked_at_again_but_after_a_while():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
