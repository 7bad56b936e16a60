"""The backends that come with the core, reached through their entry points as those of other packages are."""
