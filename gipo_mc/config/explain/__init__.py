"""The configuration explained: what is wrong with one, where its values come from, its keys for people and editors."""
