"""A plug-in that does not load."""

raise RuntimeError("the licence server is asleep")
