"""Collects published chat templates into a folder, a file NAME.jinja each.

    python3 scripts/templates/fetch.py FOLDER [MODEL.gguf ...]

They come from public repositories, and from the models that are named. Their licences differ, so they stay out of this repository.
"""

import hashlib
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

# Repository, commit, and the files to look at.
SOURCES = [
    ("ikawrakow/ik_llama.cpp", "8337e4cd3861406fc04e0854b1409cd1b027fbc9", r"^models/templates/.*\.jinja$"),
    ("huggingface/trl", "f2cd57710ae345ea6428ae95363267fcf38a3dc8", r"\.jinja$"),
    ("chujiezheng/chat_templates", "11c495621569969f264ee70b5c8bb49ba7a1a410", r"\.jinja$"),
    ("EricLBuehler/mistral.rs", None, r"^chat_templates/.*\.(jinja|json)$"),
    ("unslothai/unsloth", None, r"/chat_templates/.*\.jinja$"),
    ("huggingface/huggingface.js", "fe42e68017ffc76d09922ea8f9b38a6964345710", r"^packages/jinja/test/e2e\.test\.js$"),
    ("theroyallab/llm-prompt-templates", None, r"\.jinja$"),
    ("ardanlabs/jinja", None, r"^testdata/templates/.*\.jinja$"),
]


def git(folder, *args):
    return subprocess.run(["git", "-C", folder, *args], check=True, stdout=subprocess.PIPE).stdout


def gguf_template(data):
    """The chat template in a GGUF file's metadata, None if it has none."""
    at = 0

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0]

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n : at]

    def value(kind):
        nonlocal at
        sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
        if kind in sizes:
            at += sizes[kind]
        elif kind == 8:
            return text()
        elif kind == 9:
            item, n = take("I"), take("Q")
            for _ in range(n):
                value(item)
        return None

    if data[:4] != b"GGUF":
        return None
    at = 4
    take("I"), take("Q")
    for _ in range(take("Q")):
        key = text()
        found = value(take("I"))
        if key == b"tokenizer.chat_template":
            return found.decode()
    return None


def javascript_templates(source):
    """The string literals behind chat_template: in a test file."""
    literal = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|`((?:[^`\\]|\\.)*)`)\s*(\+?)""", re.S)
    escapes = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": ""}

    def unescape(m):
        code = m.group(1)
        if code[0] in "ux" and len(code) > 1:
            return chr(int(code[1:].strip("{}"), 16))
        return escapes.get(code, code)

    for found in re.finditer(r"chat_template:", source):
        at, text = found.end(), ""
        while m := literal.match(source, at):
            text += re.sub(r"\\(u\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.|\n)", unescape, next(g for g in m.groups()[:3] if g is not None))
            at = m.end()
            if not m.group(4):
                break
        yield text


def templates(path, data):
    """The templates in one file, with a name for each."""
    name = pathlib.Path(path).stem
    if path.endswith(".gguf"):
        found = gguf_template(data)
        return [(name, found)] if found else []
    text = data.decode("utf-8")
    if path.endswith(".js"):
        return [(f"{name}-{i}", t) for i, t in enumerate(javascript_templates(text))]
    if path.endswith(".json"):
        found = json.loads(text).get("chat_template")
        return [(name, found)] if isinstance(found, str) else []
    return [(name, text)]


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    seen = {hashlib.sha256(f.read_bytes()).digest() for f in folder.glob("*.jinja")}

    def keep(origin, name, text):
        digest = hashlib.sha256(text.encode()).digest()
        if digest in seen or "messages" not in text or "{%" not in text:
            return
        seen.add(digest)
        (folder / f"{origin}-{name}-{digest[:2].hex()}.jinja").write_bytes(text.encode())

    for repository, commit, pattern in SOURCES:
        with tempfile.TemporaryDirectory() as clone:
            git(".", "clone", "--quiet", "--filter=blob:none", "--no-checkout", f"https://github.com/{repository}", clone)
            commit = commit or "HEAD"
            for path in git(clone, "ls-tree", "-r", "--name-only", commit).decode().splitlines():
                if re.search(pattern, path):
                    for name, text in templates(path, git(clone, "show", f"{commit}:{path}")):
                        keep(repository.split("/")[1], name, text)
    for model in sys.argv[2:]:
        with open(model, "rb") as f:
            for name, text in templates(model, f.read(64 << 20)):
                keep("model", name, text)
    print(f"{len(seen)} templates in {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
