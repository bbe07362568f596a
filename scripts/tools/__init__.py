"""The tools behind the commands in scripts/."""
