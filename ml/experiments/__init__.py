"""The papers' tables and figures, from `ml/experiments.toml`: run, resumed, and written beside the papers' numbers."""
