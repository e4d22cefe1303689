"""What trained runs have to show: read from their folders, compared in tables, drawn as curves."""
