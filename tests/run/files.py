"""Log files read back."""

import json


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
