"""Saved models: a folder of JSON and arrays."""
