"""Policies x traces x pressures x seeds: the cells of a comparison, their ratios, tables and plots."""
