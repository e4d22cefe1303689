"""Feature extractors: a file a family."""
