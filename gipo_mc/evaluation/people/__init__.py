"""People as judges: a page that they vote on, the import of their votes, and how far evaluators agree."""
