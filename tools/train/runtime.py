"""Processes, devices, logs and checkpoints shared by the training scripts."""

import dataclasses
import os
import pathlib
import time

import torch
import torch.distributed as dist

from model import Config, Drafter, Target


def start():
    """-> rank, world size, device. One process per GPU under torchrun; a single process otherwise."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not torch.cuda.is_available():
        return rank, world, torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    if world > 1:
        dist.init_process_group("nccl", device_id=device)
    return rank, world, device


def stop():
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def tiny_config():
    return dataclasses.replace(Config(), hidden_size=128, intermediate_size=256, num_layers=3, num_heads=2,
                               num_kv_heads=2, taps=(0, 1))


class Log:
    def __init__(self, folder, name, rank):
        self.rank, self.began = rank, time.time()
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.file = open(folder / f"{name}.log", "a") if rank == 0 else None

    def __call__(self, message):
        if self.rank == 0:
            line = f"[{time.time() - self.began:7.1f}] {message}"
            print(line, flush=True)
            print(line, file=self.file, flush=True)


def save(path, target, drafter):
    config = dataclasses.asdict(drafter.config)
    states = {"config": config, "drafter": drafter.state_dict()}
    if target is not None:
        states["target"] = target.state_dict()
    torch.save(states, path)


def load(path, device):
    states = torch.load(path, map_location=device)
    config = Config(**states["config"])
    drafter = Drafter(config).to(device)
    drafter.load_state_dict(states["drafter"])
    target = None
    if "target" in states:
        target = Target(config).to(device)
        target.load_state_dict(states["target"])
    return config, target, drafter
