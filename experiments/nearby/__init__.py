"""Halves that are foretold by one step, in the place of trainings on halves."""
