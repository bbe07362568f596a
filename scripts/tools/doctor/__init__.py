"""The checks of scripts/doctor, a module for each subject."""
