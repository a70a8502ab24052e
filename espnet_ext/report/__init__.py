"""Lay models side by side: evaluation_results.json of each, then tables, plots and a page."""
