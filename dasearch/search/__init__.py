"""The orchestration of a study: store, objective, confirmation, final training."""
