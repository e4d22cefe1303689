"""Training: optimizers, schedules, callbacks and the run folder."""
