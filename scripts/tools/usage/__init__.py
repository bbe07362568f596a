"""scripts/usage: who used what."""

from .. import PACKAGE  # noqa: F401, not a script: see there
