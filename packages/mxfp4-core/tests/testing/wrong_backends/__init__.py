"""Backends of our own with one defect each, named by what is wrong. The suite must catch every one of them."""
