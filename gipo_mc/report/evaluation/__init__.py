"""Who wins, on a report's page: tables, pairs and policies of an evaluation."""
