"""What `ray job submit -- python -m jobs.<name> RECIPE [--set section.field=value ...]` runs, one thin script a stage."""
