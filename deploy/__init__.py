"""What surrounds the programs on a machine: the lab."""
