"""Where a study's curves may be kept: a module a tracker, imported only when it is asked for."""
