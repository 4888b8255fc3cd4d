"""process_gen: process-driven image generation in JAX."""
