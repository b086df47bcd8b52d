#!/usr/bin/python3
"""Trains the demo model: a plain llama of 12 layers, cross-entropy on the answers' tokens, AdamW.

    python3 train.py --minutes 90           # trains, or goes on from runs/checkpoint.pt
    python3 train.py --probe                # tokens/s of a few configurations, then ends

The learning rate follows the training time, not a step count, so that the run ends when it should on any machine.
Each worker is a process with one thread and its own half of the batch: on two cores that is faster than two threads
in one process, whose products are too small to share.
"""
import argparse
import json
import math
import os
import random
import time

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

import bpe
import data

HERE = os.path.dirname(os.path.abspath(__file__))
RUNS = os.path.join(HERE, "runs")
CONFIG = dict(vocab=2048, layers=12, dim=128, heads=4, kv_heads=2, ff=416, context=512, eps=1e-5, rope_base=10000.0)
LONGEST = 256  # tokens of a training conversation; answers get worse soon after that length


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, turn):
    """Rotary positions: each pair of neighbours, as a complex number, times its turn (llama.cpp's "NORM" kind).
    x: [B, T, H, hd]; turn: [T, 1, hd/2] complex"""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.h, self.kv, self.hd = c["dim"], c["heads"], c["kv_heads"], c["dim"] // c["heads"]
        self.attn_norm, self.ffn_norm = RMSNorm(d, c["eps"]), RMSNorm(d, c["eps"])
        self.qkv = nn.Linear(d, (self.h + 2 * self.kv) * self.hd, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.gate_up = nn.Linear(d, 2 * c["ff"], bias=False)  # one product for both: fewer, larger calls
        self.down = nn.Linear(c["ff"], d, bias=False)

    def forward(self, x, turn, mask):
        """x: [B, T, D]; mask: [T, T], -inf above the diagonal -> [B, T, D]"""
        B, T, _ = x.shape
        h, kv, hd = self.h, self.kv, self.hd
        qk, v = self.qkv(self.attn_norm(x)).view(B, T, h + 2 * kv, hd).split((h + kv, kv), 2)
        q, k = rotate(qk, turn).split((h, kv), 2)
        # Query heads that share keys go into one product. q: [B, kv, h/kv * T, hd]; k, v: [B, kv, T, hd]
        q = q.unflatten(2, (kv, h // kv)).permute(0, 2, 3, 1, 4).reshape(B, kv, -1, hd)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        scores = (q @ k.transpose(-1, -2)).view(B, h, T, T) * hd ** -0.5 + mask
        y = (scores.softmax(-1).view(B, kv, -1, T) @ v).view(B, h, T, hd).transpose(1, 2).reshape(B, T, -1)
        x = x + self.out(y)
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c["vocab"], c["dim"])  # also the output matrix
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = RMSNorm(c["dim"], c["eps"])
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = c["dim"] ** -0.5 if "down" not in name else c["ff"] ** -0.5
                if "down" in name or ".out" in name:  # keeps the residual stream's size independent of the depth
                    std /= math.sqrt(2 * c["layers"])
                nn.init.normal_(p, std=std)
        hd = c["dim"] // c["heads"]
        angle = torch.outer(torch.arange(c["context"]).float(), c["rope_base"] ** (-torch.arange(0, hd, 2).float() / hd))
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle)[:, None], persistent=False)

    def forward(self, ids, at):
        """ids: [B, T]; at: [B, T] bool, the positions whose logits are wanted -> [n, vocab]"""
        T = ids.shape[1]
        mask = torch.full((T, T), -math.inf).triu(1)
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, self.turn[:T], mask)
        return self.norm(x[at]) @ self.embed.weight.t()


def pad(samples):
    """[(ids, counts)] -> ids [B, T], counts [B, T]; padding comes after the text, where causal attention never looks."""
    T = max(len(ids) for ids, _ in samples)
    ids = torch.tensor([i + [bpe.END] * (T - len(i)) for i, _ in samples])
    counts = torch.tensor([c + [0] * (T - len(c)) for _, c in samples], dtype=torch.bool)
    return ids, counts


def batches(rng, tok, tokens, need, pool=2500):
    """Endless batches of about `tokens` tokens; each pool of samples is sorted by length, so little is padding.
    need: [kinds], how much each kind of question is wanted"""
    while True:
        data.focus(need.tolist())
        samples = []
        while len(samples) < pool:
            system = rng.choice(["You are a helpful assistant.", "Answer briefly.", "You are Gallop."]) if rng.random() < 0.02 else None
            s = tok.chat(data.conversation(rng), system)
            if len(s[0]) <= LONGEST:
                samples.append(s)
        samples.sort(key=lambda s: len(s[0]))
        cut, start = [], 0
        for i in range(1, pool + 1):
            if i == pool or (i + 1 - start) * len(samples[i][0]) > tokens:
                cut.append(samples[start:i])
                start = i
        rng.shuffle(cut)
        yield from (pad(c) for c in cut)


def step_loss(model, ids, counts):
    target = counts[:, 1:]
    logits = model(ids[:, :-1], target)
    return F.cross_entropy(logits, ids[:, 1:][target]), logits


@torch.no_grad()
def exact_match(model, tok, examples):
    """Share of answers that greedy decoding gives exactly. Decoding is not needed for that: if the argmax equals the
    answer's token at each position given the answer so far, greedy decoding walks the same path. -> {task: share}"""
    right = {}
    todo = sorted(((tok.chat([(e["prompt"], e["answer"])]), e["task"]) for e in examples), key=lambda s: len(s[0][0]))
    for i in range(0, len(todo), 64):
        part = todo[i:i + 64]
        ids, counts = pad([s for s, _ in part])
        target = counts[:, 1:]
        hit = torch.ones_like(target)
        hit[target] = model(ids[:, :-1], target).argmax(-1) == ids[:, 1:][target]
        for ok, (_, task) in zip(hit.all(1).tolist(), part):
            right.setdefault(task, []).append(ok)
    return {t: sum(r) / len(r) for t, r in sorted(right.items())}


class Gradients:
    """The workers' gradients, averaged in shared memory. Worker 0 owns the optimiser; all read the same weights."""

    def __init__(self, model, workers):
        self.params = list(model.parameters())
        self.all = torch.zeros(workers, sum(p.numel() for p in self.params)).share_memory_()  # [workers, parameters]
        self.stop = torch.zeros(1, dtype=torch.bool).share_memory_()
        self.barrier = mp.Barrier(workers)

    def put(self, worker):
        torch.cat([p.grad.flatten() for p in self.params], out=self.all[worker])
        self.barrier.wait()

    def average(self):
        mean, at = self.all.mean(0), 0
        for p in self.params:
            p.grad = mean[at:at + p.numel()].view_as(p)
            at += p.numel()


def work(worker, model, grads, tok, tokens, need, seed):
    """A worker other than 0: computes its gradients until told to stop."""
    feed = batches(random.Random(seed), tok, tokens, need)
    while not grads.stop:
        ids, counts = next(feed)
        model.zero_grad(set_to_none=True)
        step_loss(model, ids, counts)[0].backward()
        grads.put(worker)
        grads.barrier.wait()  # until worker 0 has changed the weights


def errors(model, tok, rng, prompts=16):
    """Share of wrong answers of each kind, on fresh prompts of the training side. -> [kinds]"""
    examples = []
    for i, k in enumerate(data.KINDS):
        for prompt, answer in (k.sample(rng) for _ in range(prompts)):
            examples.append(dict(prompt=prompt, answer=answer, task=i))
    return torch.tensor([1 - share for _, share in sorted(exact_match(model, tok, examples).items())])


def tokenizer():
    """The tokenizer of this run; learned from training conversations when there is none yet."""
    path = os.path.join(RUNS, "tokenizer.json")
    if not os.path.exists(path):
        rng = random.Random(3)
        texts = ["\n" + t for _ in range(40000) for turn in data.conversation(rng) for t in turn]
        bpe.Tokenizer(bpe.train(texts, CONFIG["vocab"])).save(path)
    return bpe.Tokenizer.load(path)


def probe(tok):
    for name, change in (("as configured", {}), ("one key/value head", dict(kv_heads=1)), ("dim 160", dict(dim=160, heads=5, kv_heads=5, ff=448))):
        for tokens in (2500, 5000):
            model = Model({**CONFIG, **change})
            opt = torch.optim.AdamW(model.parameters(), foreach=True)
            it = batches(random.Random(0), tok, tokens, torch.ones(len(data.KINDS)))
            n, used = 0, 0.0
            for i in range(8):
                ids, counts = next(it)
                t = time.time()
                step_loss(model, ids, counts)[0].backward()
                opt.step()
                opt.zero_grad(set_to_none=True)
                if i >= 2:
                    n, used = n + ids.numel(), used + time.time() - t
            print(f"{name}, {tokens} tokens a batch, {sum(p.numel() for p in model.parameters())} parameters: {n / used:.0f} tokens/s", flush=True)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--minutes", type=float, default=90, help="training time; the learning rate ends at 2 %% of its peak then")
    args.add_argument("--tokens", type=int, default=2400, help="tokens a batch, over all workers")
    args.add_argument("--rate", type=float, default=2.5e-3, help="peak learning rate")
    args.add_argument("--workers", type=int, default=2)
    args.add_argument("--probe", action="store_true")
    args = args.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    os.makedirs(RUNS, exist_ok=True)
    tok = tokenizer()
    if args.probe:
        return probe(tok)
    with open(os.path.join(HERE, "test.jsonl")) as f:
        test = [json.loads(line) for line in f]
    model = Model().share_memory()
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() == 1]
    opt = torch.optim.AdamW([dict(params=decay, weight_decay=0.05), dict(params=rest, weight_decay=0.0)], lr=args.rate, betas=(0.9, 0.98), foreach=True)
    at = dict(step=0, tokens=0, seconds=0.0)
    wrong = torch.ones(len(data.KINDS))
    checkpoint = os.path.join(RUNS, "checkpoint.pt")
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        at = saved["at"]
        wrong = torch.tensor([saved["wrong"].get(k.name, 1.0) for k in data.KINDS])
    log = open(os.path.join(RUNS, "train.log"), "a", buffering=1)
    print(f"# {sum(p.numel() for p in model.parameters())} parameters, {vars(args)}, resumed at {at}", file=log)
    share = args.tokens // args.workers
    need = (0.08 + wrong).share_memory_()  # what is still answered wrongly is asked more
    feed = batches(random.Random(100 + at["step"]), tok, share, need)
    grads = Gradients(model, args.workers)
    for worker in range(1, args.workers):
        mp.get_context("fork").Process(target=work, args=(worker, model, grads, tok, share, need, 100 + at["step"] + worker * 10**6), daemon=True).start()
    budget, loss_sum, since, tokens, mark, last_save, last_test, last_look = args.minutes * 60, 0.0, 0, 0, time.time(), time.time(), time.time(), 0
    while at["seconds"] < budget:
        t = time.time()
        rate = args.rate * min(1, (at["step"] + 1) / 200) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1, at["seconds"] / budget))))
        for g in opt.param_groups:
            g["lr"] = rate
        ids, counts = next(feed)
        loss, _ = step_loss(model, ids, counts)
        loss.backward()
        grads.put(0)
        grads.average()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        at["step"] += 1
        at["tokens"] += ids.numel() * args.workers
        at["seconds"] += time.time() - t
        over = at["seconds"] >= budget
        grads.stop[0] = over
        grads.barrier.wait()
        loss_sum, since, tokens = loss_sum + loss.item(), since + 1, tokens + ids.numel() * args.workers
        if at["step"] % 50 == 0:
            print(f"step {at['step']} tokens {at['tokens']} minutes {at['seconds'] / 60:.1f} rate {rate:.5f} loss {loss_sum / since:.4f} tokens/s {tokens / (time.time() - mark):.0f}", file=log)
            loss_sum, since, tokens, mark = 0.0, 0, 0, time.time()
        if time.time() - last_look > 300:
            wrong = (wrong + errors(model, tok, random.Random(at["step"]))) / 2
            need.copy_(0.08 + wrong)
            print("wrong " + " ".join(f"{k.name} {100 * w:.0f}" for k, w in zip(data.KINDS, wrong.tolist()) if w > 0.1), file=log)
            last_look = mark = time.time()
            tokens = 0
        if over or time.time() - last_save > 120:
            torch.save(dict(wrong={k.name: w for k, w in zip(data.KINDS, wrong.tolist())}, model=model.state_dict(), opt=opt.state_dict(), at=at, config=CONFIG), checkpoint + ".new")
            os.replace(checkpoint + ".new", checkpoint)
            last_save = time.time()
        if over or time.time() - last_test > 480:
            shares = exact_match(model, tok, test if over else test[::2])
            print("held out " + " ".join(f"{t} {100 * s:.0f}" for t, s in shares.items()), file=log)
            last_test = mark = time.time()
            tokens = 0


if __name__ == "__main__":
    main()
