"""What runs offline and from the command line: features, training, pipeline, serving processes."""
