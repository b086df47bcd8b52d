"""Byte-level BPE as llama.cpp does it (tokenizer.ggml.model = "gpt2", tokenizer.ggml.pre = "qwen2").

The qwen2 split is chosen because it takes digits one by one: sums and sorting are then learnable.
"""
import json
from collections import Counter, defaultdict

import regex

SPLIT = regex.compile(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]  # ids 0..3, control tokens
END, USER, ASSISTANT, SYSTEM = range(4)


def byte_letters():
    """GPT-2's table: a printable letter for each byte, so that tokens can be written as text. -> [256] str"""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, spare = {b: chr(b) for b in plain}, 256
    for b in range(256):
        if b not in letters:
            letters[b], spare = chr(spare), spare + 1
    return [letters[b] for b in range(256)]


LETTERS = byte_letters()


def letters_of(text):
    return tuple(LETTERS[b] for b in text.encode())


def train(texts, vocab_size):
    """Learns merges from texts. -> [(left, right)] in order of rank"""
    counts = Counter(piece for t in texts for piece in SPLIT.findall(t))
    words = [(list(letters_of(w)), n) for w, n in sorted(counts.items())]
    pairs, where = Counter(), defaultdict(set)  # pair -> count, pair -> indices of words that hold it
    for i, (symbols, n) in enumerate(words):
        for p in zip(symbols, symbols[1:]):
            pairs[p] += n
            where[p].add(i)
    merges = []
    while len(merges) < vocab_size - len(SPECIAL) - 256:
        best = max(pairs, key=lambda p: (pairs[p], p))
        if pairs[best] < 2:
            break
        merges.append(best)
        for i in where[best]:
            symbols, n = words[i]
            for p in zip(symbols, symbols[1:]):
                pairs[p] -= n
            symbols[:] = merge(symbols, best)
            for p in zip(symbols, symbols[1:]):
                pairs[p] += n
                where[p].add(i)
        del pairs[best]
    return merges


def merge(symbols, pair):
    out, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i:i + 2]) == pair:
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


class Tokenizer:
    def __init__(self, merges):
        self.merges = [tuple(m) for m in merges]
        self.rank = {m: r for r, m in enumerate(self.merges)}
        self.tokens = SPECIAL + LETTERS + [x + y for x, y in self.merges]
        assert len(set(self.tokens)) == len(self.tokens)
        self.ids = {t: i for i, t in enumerate(self.tokens)}
        self.cache = {}

    @classmethod
    def load(cls, path):
        with open(path) as f:
            return cls(json.load(f))

    def save(self, path):
        with open(path, "w") as f:
            json.dump(self.merges, f)

    def piece(self, piece):
        if piece not in self.cache:
            symbols = list(letters_of(piece))
            while len(symbols) > 1:
                pair = min(zip(symbols, symbols[1:]), key=lambda p: self.rank.get(p, 1 << 30))
                if pair not in self.rank:
                    break
                symbols = merge(symbols, pair)
            self.cache[piece] = [self.ids[s] for s in symbols]
        return self.cache[piece]

    def encode(self, text):
        return [i for p in SPLIT.findall(text) for i in self.piece(p)]

    def decode(self, ids):
        back = {c: b for b, c in enumerate(LETTERS)}
        return bytes(back[c] for i in ids if i >= len(SPECIAL) for c in self.tokens[i]).decode(errors="replace")

    def chat(self, turns, system=None):
        """Tokens of a conversation and where the loss counts (the answers and their <|end|>). -> ids, counts"""
        ids, counts = [], []
        if system:
            ids += [SYSTEM, *self.encode("\n" + system), END, *self.encode("\n")]
            counts += [0] * len(ids)
        for k, (prompt, answer) in enumerate(turns):
            ask = [*self.encode("\n")] * (k > 0) + [USER, *self.encode("\n" + prompt), END, *self.encode("\n"), ASSISTANT, *self.encode("\n")]
            say = [*self.encode(answer), END]
            ids += ask + say
            counts += [0] * len(ask) + [1] * len(say)
        return ids, counts
