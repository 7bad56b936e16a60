"""Hostile input, crashes and damage: nothing but our own errors, no byte that is wrong, nothing that goes unnoticed.

`mutate` makes inputs, `material` makes the checkpoints that they come from, `readers` has one reader for each kind of
file that is read, `inputs` runs them under a watchdog and a limit of memory. `crashes` kills runs and lets them go on,
`flips` changes single bits of a result. `table` prints what came of it.
"""
