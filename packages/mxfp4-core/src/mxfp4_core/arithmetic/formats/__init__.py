"""Formats: a weight is a set of named parts, and one `Format` object says which.

``base`` has the protocol, one module each format; ``registry`` finds formats by name, those of other packages too.
"""
