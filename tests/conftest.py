"""One thread for each test process: they run side by side, and on small tensors threads wait longer
than they work."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
