"""`make bench-report`: docs/performance.md with its plots, from one run on one machine.

`series` measures what grows, `plots` draws it, `document` writes; the cases are those of `check`.
"""
