"""From mined values to the generator's dense supervision."""
