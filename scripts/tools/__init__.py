"""What the commands in scripts/ start."""
