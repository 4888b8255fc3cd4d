"""The commands: one verb a module, run as `python -m launch.VERB`."""
