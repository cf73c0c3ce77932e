"""Importing libraries without what they do at their import and no start needs."""
