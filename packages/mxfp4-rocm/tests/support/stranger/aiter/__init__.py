"""A task scheduler by somebody else, say."""
