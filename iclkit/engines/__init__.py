"""Where jobs run: in this process, in workers beside it, or on a cluster. Nothing here knows what a job is."""

from iclkit.engines._local import LocalEngine
from iclkit.engines._processes import ProcessEngine, usable_cores
from iclkit.engines._protocol import Engine
from iclkit.engines._ray import RayEngine, ray_address

__all__ = ["Engine", "LocalEngine", "ProcessEngine", "RayEngine", "ray_address", "usable_cores"]
