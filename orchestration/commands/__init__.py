"""The command groups of `degre`, one file each; heavy imports stay inside the commands."""
