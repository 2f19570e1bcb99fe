"""Recommenders over a frozen language model, whose adapter layout is a tensor handed to ``forward``."""
