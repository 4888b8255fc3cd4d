"""From sources of trajectories to batches: tokenizer, sources, packing, pipeline, builders."""
