"""From collected logs to a candidate bundle that has passed its gates."""
