"""The library's own commands in `towerflow`: describe, plan, advise, calibrate.

Each module has ``add_arguments(parser)`` and ``run(options)``; ``run`` raises InputError for a
user's mistake, and contains the slow imports.
"""
