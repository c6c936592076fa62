"""How the blocks of each launch are dealt out in shares.

A worker asks once a share whether it may go on, and every question costs it a few tenths of a
microsecond. Small shares leave soon, large ones run fast: a share may last about ``share_us``.
"""

from __future__ import annotations

import math

from miriam.profile import ProfileSource, launch_key
from miriam.program import Program

__all__ = ["SHARE_US", "share_sizes"]

SHARE_US = 8.0


def share_sizes(
    program: Program, profiles: ProfileSource, device: str, sms: int, share_us: float = SHARE_US
) -> tuple[int, ...]:
    """Blocks of a share for each launch of a program.

    A launch that fits the device at once has as many shares as blocks: dealing it out more coarsely
    would leave SMs idle. Of another one a block lasts about as long as one of its waves, T / W with
    its time T and its waves W = ceil(blocks / (resident blocks * SMs)).

    Parameters
    ----------
    profiles, device
        Where the launches were measured; a launch that was not has shares of one block.
    sms
        SMs that the program will have.
    share_us
        About how long a share may last, in us.
    """
    sizes = []
    for step in program.launches:
        profile = profiles.launch(device, launch_key(program.kernels[step.kernel], step))
        if profile is None or sms not in profile.times_us:
            sizes.append(1)
            continue
        waves = math.ceil(step.blocks / (profile.blocks_per_sm * sms))
        block_us = profile.times_us[sms] / waves
        sizes.append(max(1, min(waves, int(share_us / block_us))))
    return tuple(sizes)
