"""`make bench-check BASE=COMMIT`: this checkout beside another commit, case by case, each beside a yardstick.

`verdict` and `budgets` decide and are pure; `cases` measure; `rounds` says who is measured when; `tree` builds the
other commit; `machine` says where all of it ran.
"""
