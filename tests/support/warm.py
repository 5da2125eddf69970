"""What every process that trains would work out or import again, each in two seconds: the server
that they are forked from does it once, as it imports this."""

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401 (the plan's picture)

from recsys.provenance import code_of

for module in ("online_stream", "scoring", "students", "teacher"):
    code_of(f"recsys.distill.{module}")
