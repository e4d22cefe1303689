"""Whole models of others: where their weights are, and what their layers are called here."""
