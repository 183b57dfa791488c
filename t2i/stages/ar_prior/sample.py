"""Drawing image embeddings from sentences, code after code.

B batch · D width of CLIP embeddings · k components · K buckets
"""

import torch
from torch import Tensor

from t2i.core.errors import DataError
from t2i.core.seed import Streams, upload
from t2i.core.types import Condition, Prediction, StepCallback, TextFeatures
from t2i.nn.generate import pick
from t2i.stages.ar_prior.model import ArPrior


@torch.no_grad()
def sample(
    model: ArPrior,
    text: TextFeatures,
    streams: Streams,
    guidance: float = 1.0,
    *,
    null: TextFeatures | None = None,
    temperature: float = 1.0,
    dot_percentile: float = 50.0,
    callback: StepCallback | None = None,
) -> Tensor:
    """CLIP image embeddings for sentences, (B, D), of unit norm unless the prior's CLIP has others.

    Args:
        text: features of B sentences.
        streams: one random stream per sentence.
        guidance: classifier-free scale of the logits of all codes but the dot product's; logits become
            null + guidance · (conditional - null).
        null: features of the empty or the negative sentence, same batch; needed when guidance is not 1.
        temperature: divides the logits.
        dot_percentile: the dot product with the sentence's own embedding is drawn from its predicted distribution above
            this percentile (Ramesh et al. 2022, section 2.2: of 50, 70, 85 and 95 they found 50 best); 0 for all of it.
        callback: called after every code with the embedding that the codes so far make.

    Raises DataError for a prior that was never calibrated.
    """
    if not temperature > 0 or not 0 <= dot_percentile < 100:
        raise ValueError(
            "temperature must be above 0 and dot_percentile in 0…100, 100 left out, "
            f"got {temperature} and {dot_percentile}"
        )
    if not model.calibrated:
        raise DataError("this prior has no PCA and no buckets (they are NaN); call calibrate() or load them")
    if guidance != 1 and null is None:
        raise ValueError(f"guidance {guidance} needs an unconditional condition")
    num_codes = model.config.num_codes
    condition = _both(model, text, null) if guidance != 1 and null is not None else model.condition(text)
    u = upload(streams.uniform(num_codes), text.pooled.device)  # (B, 1 + k)
    u[:, 0] = dot_percentile / 100 + (1 - dot_percentile / 100) * u[:, 0]
    codes: list[Tensor] = []
    token = condition.vector
    for place in range(num_codes):
        assert token is not None
        logits, condition = model.step(token, place, condition)
        if guidance != 1:
            conditional, without = logits.chunk(2)
            logits = conditional if place == 0 else without + guidance * (conditional - without)
        codes.append(pick(logits / temperature, u[:, place]))
        token = model.codes(codes[-1]).repeat(2 if guidance != 1 else 1, 1)
        if callback is not None:
            z_i = model.restore(torch.stack(codes, dim=1)[:, 1:])
            callback(place + 1, num_codes, z_i, Prediction(z_i, torch.zeros_like(z_i), torch.zeros_like(z_i)))
    return model.restore(torch.stack(codes, dim=1)[:, 1:])


def _both(model: ArPrior, text: TextFeatures, null: TextFeatures) -> Condition:
    """Sentences and, after them, what guidance moves away from."""
    length = max(text.mask.shape[1], null.mask.shape[1])
    return Condition.cat([model.condition(text.padded(length)), model.condition(null.padded(length))])
