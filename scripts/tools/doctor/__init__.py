"""The checks of scripts/doctor, a module for each subject."""

from .. import PACKAGE  # noqa: F401, not a script: see there
