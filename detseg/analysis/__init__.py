"""What can be computed about a model without running it."""
