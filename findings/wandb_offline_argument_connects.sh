#!/usr/bin/env bash
# wandb 0.31.0: wandb.init(mode="offline") beside WANDB_MODE=offline.
#
# Expected: a run in offline mode makes no connection, however the mode was given; the library's own code asks
#   `settings._offline` before it starts to report on itself (wandb/analytics/opentelemetry/opentelemetry_proxy.py).
# Seen: with WANDB_MODE=offline nothing is sent. With the argument mode="offline", which the documentation of wandb.init
#   recommends for air-gapped machines, the process posts metrics on the library (its version, Python's, a new id,
#   durations) to /sdk/otel/v1/metrics of the server, by default that of W&B: the mode of the run comes too late for
#   what was set up from the settings of the process. WANDB_ERROR_REPORTING=false stops it.
# Why it matters: clusters without a way out see an attempt and a wait for each run, and "offline" is what people choose
#   who may not connect.
# Here: gipo_mc/run/trackers/weights_biases.py sets WANDB_ERROR_REPORTING=false unless it is set;
#   tests/run/trackers/test_weights_biases.py checks that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q wandb==0.31.0 || { echo "pip could not install it."; exit 2; }
env/bin/python -I - <<'PYTHON'
import http.server
import os
import subprocess
import sys
import threading

RUN = """
import sys, wandb
mode = {"mode": "offline"} if sys.argv[1] == "argument" else {}
run = wandb.init(project="p", dir=".", settings=wandb.Settings(console="off", silent=True), **mode)
run.log({"a": 1})
run.finish()
"""
seen = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
found = {}
for how, more in (
    ("argument", {}),
    ("environment", {"WANDB_MODE": "offline"}),
    ("argument, WANDB_ERROR_REPORTING=false", {"WANDB_ERROR_REPORTING": "false"}),
):
    seen.clear()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    own = {"HOME": os.getcwd(), "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
    subprocess.run([sys.executable, "-c", RUN, how.split(",")[0]], env=clean | own | more, check=True)
    found[how] = sorted(set(seen))
    print(f"offline by {how}: {found[how] or 'nothing was sent'}")
if list(found.values()) != [["/sdk/otel/v1/metrics"], [], []]:
    sys.exit("Changed: this is not what the header says.")
print("As stated: the argument alone does not keep the library from the network.")
PYTHON
