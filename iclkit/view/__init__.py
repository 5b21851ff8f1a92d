"""A pool in the browser: what two selectors choose for a query, the pool as a table and a map, runs and their boards.

Needs the extra ``iclkit[serve]``. A page for one person on one machine: it is served on loopback only, and answers only
who has the key that stands in its address.
"""

from iclkit.view._app import make_view_app, run_view
from iclkit.view._workbench import Workbench

__all__ = ["Workbench", "make_view_app", "run_view"]
