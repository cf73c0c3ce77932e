"""Python functions that a configuration or a judge's file names: found and looked at without torch."""
