"""Reading what runs left behind: comparison, tables, plots and the HTML report."""
