"""Where jobs run: in this process, or in worker processes beside it. Nothing here knows what a job is."""

from iclkit.engines._local import LocalEngine
from iclkit.engines._processes import ProcessEngine
from iclkit.engines._protocol import Engine

__all__ = ["Engine", "LocalEngine", "ProcessEngine"]
