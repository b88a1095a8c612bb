"""Writes a VAE of random weights for diffusers, 100 kB small: ``tiny_vae.py FOLDER``.

It is run by the Python that has InvokeAI, not by the tests' own.
"""

from __future__ import annotations

import sys

from diffusers import AutoencoderKL

BLOCKS = 4
"""Each but the last halves the picture: what InvokeAI encodes has an eighth of its sides."""


def main() -> None:
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * BLOCKS,
        up_block_types=("UpDecoderBlock2D",) * BLOCKS,
        block_out_channels=(8,) * BLOCKS,
        norm_num_groups=4,
    ).save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()
