"""Bayesian-optimization search for adapter layouts of LLM-based sequential recommenders."""
