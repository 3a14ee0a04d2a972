"""CSPNet written plainly, as the paper has it: the yardstick for the fast form.

It reads the parameters of a fast network, concatenates every edge input and multiplies.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from crystalctl.networks.cspnet import CSPNet
from crystalctl.networks.layers import time_features


def plain_forward(
    net: CSPNet, species: Tensor, frac: Tensor, g: Tensor, t: Tensor, counts: list[int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Lattice (C, .), coordinate (A, 3) and species output of ``net``, edge by edge."""
    k = torch.arange(net.fourier.n_frequencies, dtype=frac.dtype)
    crystal = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])
    receiver, sender, start = [], [], 0
    for n in counts:
        receiver += [start + i for i in range(n) for _ in range(n)]
        sender += [start + j for _ in range(n) for j in range(n)]
        start += n
    i, j = torch.tensor(receiver), torch.tensor(sender)
    emb = net.embedding(species if net.species_head is not None else species - 1)
    time = time_features(t, net.time_width).to(emb.dtype)[crystal]
    h = net.input(torch.cat([emb, time], 1))
    angle = (2 * math.pi * (frac[j] - frac[i])[:, :, None] * k).flatten(1)
    psi = torch.cat([angle.sin(), angle.cos()], 1)
    degree = torch.tensor(counts, dtype=frac.dtype)[crystal][:, None]
    for layer in net.layers:
        x = layer.norm(h)
        message = layer.edge_mlp(torch.cat([x[i], x[j], g[crystal[i]], psi], 1))
        total = torch.zeros_like(x).index_add(0, i, message)
        h = h + layer.node_mlp(torch.cat([x, total / degree], 1))
    h = F.layer_norm(h, h.shape[1:], net.norm.weight, net.norm.bias)
    mean = torch.zeros(len(counts), h.shape[1], dtype=h.dtype).index_add(0, crystal, h)
    mean = mean / torch.tensor(counts, dtype=h.dtype)[:, None]
    types = None if net.species_head is None else net.species_head(h)
    return net.lattice_head(mean), net.frac_head(h), types
