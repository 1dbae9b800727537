"""Muon for matrices, AdamW for the rest, and a learning rate that follows the clock."""

import time

import torch
import torch.distributed as dist

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Keller Jordan's quintic


def orthogonalize(stack):
    """stack [n, O, I] -> each matrix replaced by (about) its nearest semi-orthogonal one."""
    a, b, c = NEWTON_SCHULZ
    x = stack.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.transpose(1, 2)


class Muon:
    """Momentum, orthogonalised per matrix; matrices of one shape go through in one batch."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.groups = {}
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.state = {shape: torch.zeros(len(ps), *shape, device=ps[0].device) for shape, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, scale):
        lr = self.lr * scale
        for shape, params in self.groups.items():
            grad = torch.stack([p.grad for p in params])
            state = self.state[shape].lerp_(grad, 1 - self.momentum)
            update = orthogonalize(grad.lerp(state, self.momentum)).float()
            update = update * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(params, 1 - lr * self.weight_decay)
            torch._foreach_add_(params, list(update.unbind()), alpha=-lr)


class Optimizer:
    def __init__(self, modules, muon_lr, adam_lr, weight_decay=0.05):
        params = [p for m in modules for p in m.parameters()]
        self.params = params
        self.flat_grad = torch.zeros(sum(p.numel() for p in params), device=params[0].device)
        offset = 0
        for p in params:  # every gradient is a view of one buffer: one all-reduce a step
            p.grad = self.flat_grad[offset:offset + p.numel()].view_as(p)
            offset += p.numel()
        names = [n for m in modules for n, _ in m.named_parameters()]
        is_matrix = [p.ndim == 2 and "embed" not in n for n, p in zip(names, params)]
        self.muon = Muon([p for p, m in zip(params, is_matrix) if m], muon_lr, weight_decay=weight_decay)
        rest = [p for p, m in zip(params, is_matrix) if not m]
        fused = params[0].is_cuda
        self.adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=fused)
        self.adam_lr = adam_lr

    def step(self, scale):
        if dist.is_initialized():
            dist.all_reduce(self.flat_grad, op=dist.ReduceOp.AVG)
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.muon.step(scale)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * scale
        self.adam.step()
        self.flat_grad.zero_()


class Clock:
    """Trains until `seconds` of wall time are spent. Every rank follows rank 0's clock."""

    def __init__(self, seconds, device):
        self.seconds, self.device, self.start = max(seconds, 10.0), device, time.time()

    def progress(self):
        now = torch.tensor([(time.time() - self.start) / self.seconds], device=self.device)
        if dist.is_initialized():
            dist.broadcast(now, 0)
        return float(now)


def trapezoid(progress, warmup=0.01, decay=0.4, floor=0.01):
    """Linear warm-up, flat, linear decay to `floor` over the last `decay` of the run."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return min(1.0, floor + (1 - floor) * max(0.0, 1 - progress) / decay)
