"""scripts/keys: the keys file, for people and for scripts."""

from .. import PACKAGE  # noqa: F401, not a script: see there
