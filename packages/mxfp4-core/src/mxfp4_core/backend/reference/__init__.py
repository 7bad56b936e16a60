"""The backend that runs everywhere and judges the others, reached through its entry point like any other."""
