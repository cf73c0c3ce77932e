#!/usr/bin/env bash
# openai 3.57.0 (Python client): headers from the environment, and a base_url of one's own.
#
# Expected: OpenAI(api_key=..., base_url=...) sends this key to this server, and what the environment holds for OpenAI
#   goes to OpenAI.
#   Assumed, and written down after the first look: an explicit api_key goes before OPENAI_CUSTOM_HEADERS.
# Seen: OPENAI_ORG_ID, OPENAI_PROJECT_ID and all of OPENAI_CUSTOM_HEADERS go to whatever base_url names, here a server on
#   loopback; an Authorization in OPENAI_CUSTOM_HEADERS replaces the explicit api_key. Nothing says so.
# Why it matters: a judge on somebody else's server is sent the token of a gateway that the shell is set up for, and
#   answers 401 to a key that is right.
# Here: _connect in gipo_mc/evaluation/judges/openai_judge.py sends none of them; tests/evaluation/test_judge_secrets.py,
#   test_nothing_of_another_account_in_the_environment_is_sent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q openai==3.57.0 || { echo "pip could not install it."; exit 2; }
export OPENAI_ORG_ID=org-mine OPENAI_PROJECT_ID=project-mine
export OPENAI_CUSTOM_HEADERS=$'Authorization: Bearer token-of-a-gateway\nX-Gateway: secret'

cat > ask.py <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai

NAMES = ("authorization", "x-gateway", "openai-organization", "openai-project")
sent = {}


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        sent.update({name: self.headers[name] for name in NAMES})
        body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(api_key="key-of-this-server", base_url=f"http://127.0.0.1:{server.server_port}/v1")
client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
print(openai.__version__, sent)
expected = ("Bearer token-of-a-gateway", "secret", "org-mine", "project-mine")
sys.exit(0 if tuple(sent[name] for name in NAMES) == expected else 1)
PYTHON
env/bin/python -I ask.py || { echo "Changed: it is not as stated."; exit 1; }
echo "As stated."
