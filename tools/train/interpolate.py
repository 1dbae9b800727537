"""Writes the drafter between two of the same shape: (1 - share) * FIRST + share * SECOND, rounded to FP8.

  python interpolate.py --target models/demo-target --first OLD --second TUNED --share 0.65 --out models/demo-draft

A short further training teaches a drafter a new skill at the price of an old one; weights between the two keep most of
both (cf. WiSE-FT, arXiv 2109.01903). Here: short blocks, at the price of whole ones.
"""

import argparse
import dataclasses
import pathlib

import torch

from checkpoint import read_pair
from export import export_drafter


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--first", required=True)
    parser.add_argument("--second", required=True)
    parser.add_argument("--share", type=float, default=0.65, help="of the second")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    device = torch.device("cpu")
    _, _, first = read_pair(args.target, args.first, device)
    config, _, second = read_pair(args.target, args.second, device)
    if dataclasses.replace(config, draft_blocks=()) != dataclasses.replace(first.config, draft_blocks=()):
        raise SystemExit(f"{args.first} and {args.second} differ in shape")
    states = first.state_dict(), second.state_dict()
    second.load_state_dict({name: (1 - args.share) * value + args.share * states[1][name]
                            for name, value in states[0].items()})
    export_drafter(config, second, args.out)


if __name__ == "__main__":
    main()
