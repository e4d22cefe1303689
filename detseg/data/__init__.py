"""Reading, checking, augmenting and loading labelled images."""
