"""Painting: jitted pieces with static shapes, and a host-side walk over the grammar."""
