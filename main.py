"""The documented entry point: python main.py --config=configs/training.yaml --dataset=cifar10."""

import sys

from gebm.cli import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
