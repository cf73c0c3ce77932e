"""The paper's table as a recipe: its runs, responses, judges and tables, step by step, from one file."""
