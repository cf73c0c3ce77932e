"""Other layouts and options than those of a configuration: all of them ranked, and the nearest that fits."""
