"""Training: makes the weights that engines run. Runs from a checkout, not in the wheel."""
