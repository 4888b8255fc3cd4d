"""Elementwise losses and their reduction by stage."""
