"""scripts/keys: the keys file, for people and for scripts."""
