"""From a request and its feature columns to the arrays the models read. One encoder, offline and online."""
