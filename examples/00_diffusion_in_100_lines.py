"""Diffusion in 100 lines: learn to draw discs and squares, then draw some from noise, with torch alone.

    python examples/00_diffusion_in_100_lines.py      # under a minute; writes diffusion.png

Rows of the picture: data · DDPM, 200 network calls · DDIM, 20 calls. B batch · D width · H W pixels · T steps
"""

import argparse

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss, silu

T, SIZE = 200, 16


def shapes(num: int) -> Tensor:
    """Discs and squares of random size and place, white on black: (B, 1, H, W) in [-1, 1]."""
    centre, radius = 4.5 + 6 * torch.rand(num, 2, 1, 1), 2.5 + 2 * torch.rand(num, 1, 1)
    dy, dx = ((torch.arange(SIZE) - c).abs() for c in (centre[:, 0], centre[:, 1]))  # (B, 1, 16), each
    distance = torch.where(torch.rand(num, 1, 1) < 0.5, (dx**2 + dy.mT**2).sqrt(), torch.maximum(dx, dy.mT))
    return (2 * (radius - distance)).clamp(-1, 1)[:, None]


class Block(nn.Module):
    """A residual layer that is told the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.time = nn.LayerNorm(width), nn.Linear(32, width)
        self.enter, self.leave = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x + self.leave(silu(self.enter(self.norm(x) + self.time(time))))


class Network(nn.Module):
    """Predicts x_0 from x_t and t, as DALL-E 2's prior does; a picture of 256 pixels fits into plain linear layers."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(SIZE * SIZE, width), nn.Linear(width, SIZE * SIZE)
        self.blocks = nn.ModuleList(Block(width) for _ in range(4))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * 2.0 ** -torch.arange(16)  # (B, 16), from fast to slow
        time, h = torch.cat([angles.cos(), angles.sin()], dim=1), self.enter(x_t.flatten(1))  # (B, 32), (B, D)
        for block in self.blocks:
            h = block(h, time)
        return self.leave(h).view_as(x_t)


def cosine_alpha_bar() -> Tensor:
    """How much signal is left at t = 0 (all) to T (Nichol & Dhariwal 2021, eq. 17); betas capped at 0.999."""
    f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * torch.pi / 2) ** 2
    return torch.cat([f.new_ones(1), torch.cumprod((f[1:] / f[:-1]).clamp(min=0.001), 0)]).float()  # (T + 1,)


@torch.no_grad()
def sample(model: nn.Module, alpha_bar: Tensor, num: int, steps: range, eta: float) -> Tensor:
    """DDIM (Song et al. 2020, eq. 12); with eta = 1 and every step it is DDPM (Ho et al. 2020)."""
    x = torch.randn(num, 1, SIZE, SIZE)
    for t, before in zip(steps, [*steps[1:], 0], strict=True):
        a, b = alpha_bar[t], alpha_bar[before]
        x_0 = model(x, torch.full((num,), t)).clamp(-1, 1)
        eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        x = b.sqrt() * x_0 + (1 - b - sigma**2).clamp(min=0).sqrt() * eps + sigma * torch.randn_like(x)
    return x


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1200, help="training steps")
    parser.add_argument("--out", default="diffusion.png")
    args = parser.parse_args()
    torch.manual_seed(0)
    model, alpha_bar = Network(), cosine_alpha_bar()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for i in range(1, args.steps + 1):
        x_0, t = shapes(128), torch.randint(1, T + 1, (128,))
        a = alpha_bar[t][:, None, None, None]
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * torch.randn_like(x_0)  # Ho et al. 2020, eq. 4
        loss = mse_loss(model(x_t, t), x_0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if i % 100 == 0:
            print(f"step {i:5d}  loss {loss.item():.4f}")
    steps = range(T, 0, -1)
    rows = [shapes(12), sample(model, alpha_bar, 12, steps, eta=1), sample(model, alpha_bar, 12, steps[::10], eta=0)]
    grid = torch.cat([torch.cat(list(row[:, 0]), dim=1) for row in rows])  # (3 · H, 12 · W)
    Image.fromarray(((grid + 1) * 127.5).byte().numpy()).resize((12 * 64, 3 * 64), resample=0).save(args.out)


if __name__ == "__main__":
    main()
