"""Cut a LoRA to a lower rank by the singular values of each B·A.

python shrink_lora.py IN.safetensors OUT.safetensors RANK
"""

import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def main(source, target, rank):
    """Write the LoRA at the lower rank and say how much of it was kept."""
    weights, out, kept = load_file(source), {}, []
    for name in sorted(k for k in weights if "lora_A" in k):
        partner = name.replace("lora_A", "lora_B")
        a, b = weights[name].float(), weights[partner].float()
        have = a.shape[0]
        qb, rb = torch.linalg.qr(b.reshape(-1, have))
        qa, ra = torch.linalg.qr(a.reshape(have, -1).T)
        u, s, v = torch.linalg.svd(rb @ ra.T)
        n = min(rank, have)
        kept.append((s[:n].square().sum() / s.square().sum().clamp(min=1e-20)).item())
        root = s[:n].sqrt()
        out[name] = (root[:, None] * (v[:n] @ qa.T)).reshape(n, *a.shape[1:]).half().contiguous()
        out[partner] = ((qb @ u[:, :n]) * root).reshape(b.shape[0], n, *b.shape[2:]).half().contiguous()
    with safe_open(source, "pt") as f:
        save_file(out, target, metadata=f.metadata())
    print(f"rank {rank}: {sum(kept) / len(kept):.1%} of the energy kept on average, {min(kept):.1%} in the worst layer")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
