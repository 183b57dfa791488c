"""Ports: how what is said of a picture becomes the `Condition` of a network, one small config and module for each kind.

    text        a text transformer that is trained with the network (GLIDE, section 2)
    clip_image  a CLIP image embedding, as a vector and as a few tokens (unCLIP, section 2.1)
    clip_text   what a frozen CLIP says of a sentence (Karlo)
    states      what another frozen encoder says of it, such as T5 (DALL-E 3)
    classes     a table of labels (ADM)
    masked      a picture of which a part is hidden, and the mask (GLIDE, section 3.2)

A new kind of input is a config and a module here, and a field of that name in `PortsConfig` and in `Given`.

B batch · L tokens · D width of embeddings · W width of frozen states · S of the context · V of the time vector
"""

from t2i.nn.ports.base import Given, Port
from t2i.nn.ports.clip import ClipImageConfig, ClipTextConfig
from t2i.nn.ports.joined import KINDS, READ, Ports, PortsConfig
from t2i.nn.ports.others import ClassesConfig, MaskedConfig
from t2i.nn.ports.states import StatesConfig
from t2i.nn.ports.text import TextPort, TextPortConfig

__all__ = [
    "KINDS",
    "READ",
    "ClassesConfig",
    "ClipImageConfig",
    "ClipTextConfig",
    "Given",
    "MaskedConfig",
    "Port",
    "Ports",
    "PortsConfig",
    "StatesConfig",
    "TextPort",
    "TextPortConfig",
]
