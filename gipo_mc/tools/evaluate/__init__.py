"""The sub-commands of scripts/evaluate.py: each reads its arguments and runs."""
