"""Reading run folders: statistics, tables, figures, and what is inside networks."""
