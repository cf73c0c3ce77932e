#!/usr/bin/env bash
# setuptools 84.2.1: an editable install of a flat layout, used from the folder that holds the clone.
#
# Expected: after `pip install -e project` the package `project` of the clone `project/` can be imported from anywhere,
#   the clone's parent included: that is what an editable install is for.
# Seen: it is found by a hook that comes after Python's own finder. In the parent folder that finder takes the clone's
#   folder for a namespace package of that name, and the hook is never asked: `import project` gives an empty package,
#   `python -m project` fails. Saying what is the default, package-dir = {"" = "."}, makes setuptools write a path in
#   place of the hook, with which a regular package wins over the folder.
# Why it matters: repository and package often have one name, and configurations lie beside the clone.
# Here: pyproject.toml says package-dir; tests/shell/test_install.py holds it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q setuptools==84.2.1 || { echo "pip could not install it."; exit 2; }
mkdir -p project/project
echo 'value = 1' > project/project/__init__.py
try() {
    printf '[project]\nname = "project"\nversion = "1"\n[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n[tool.setuptools]\npackages = ["project"]\n%s\n' "$1" > project/pyproject.toml
    rm -rf project/build project/*.egg-info
    env/bin/pip uninstall -q -y project 2>/dev/null || true
    env/bin/pip install -q --no-build-isolation --no-deps -e ./project || exit 2
    env/bin/python -c 'import project; print(getattr(project, "value", "an empty namespace package"))'
}
hook=$(try "")
path=$(try 'package-dir = {"" = "."}')
echo "as it comes: $hook; with package-dir = {\"\" = \".\"}: $path"
[ "$hook" = "an empty namespace package" ] && [ "$path" = 1 ] || { echo "Changed."; exit 1; }
echo "As stated."
