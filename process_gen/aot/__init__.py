"""Programs compiled ahead of time, for machines that are not here: what they hold and exchange."""
