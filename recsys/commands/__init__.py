"""What `towerflow` offers of the library: describe, plan, advise, calibrate.

Each module has ``add_arguments(parser)`` and ``run(options)``; ``run`` raises InputError for a
user's mistake, and imports what is slow to import.
"""
