"""Makes training data: recipes over a planner, a drafter and a judge."""
