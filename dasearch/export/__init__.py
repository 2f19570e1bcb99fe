"""Layouts and trained models in the forms other trainers read."""
