"""Textwright (文匠): train, measure, explain and serve text generators."""

__version__ = "0.1.0"
