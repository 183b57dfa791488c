"""A rewriter: a small language model that turns what a person types into what a descriptive caption says.

DALL-E 3 is trained on descriptive captions and so must be asked in them; the paper has GPT-4 write them (Betker et al.
2023, section 3.5). This one learns from pairs of captions, short and descriptive, that a captioner gives for free.

In: sentences. Out: sentences.

    t2i train configs/shapes/rewriter.yaml    train it, on scenes of the shapes world or on recaptioned pictures
    Rewriter.rewrite(sentences)               use it (`t2i.stages.rewriter.model`)
    t2i generate --upsample-prompt lm         draw what it writes
"""

from t2i.stages.rewriter.model import Rewriter, RewriterConfig
from t2i.stages.rewriter.policy import complete, example
from t2i.stages.rewriter.task import RewriterOptions, RewriterTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="rewriter",
    config=RewriterConfig,
    model=Rewriter,
    options=RewriterOptions,
    task=RewriterTask,
    complete=complete,
    readers=lambda model: [model.tokenizer],
    example=example,
)
