"""What scripts/doctor looks at, a module each."""
