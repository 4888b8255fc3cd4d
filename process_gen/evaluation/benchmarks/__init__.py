"""The community's benchmarks: their prompts, folders, results and counting rules."""
