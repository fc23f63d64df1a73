from __future__ import annotations

import torch

# bit-identity holds at one number of threads, and one thread is the fastest for nets this small
torch.set_num_threads(1)
