"""The model types of the installed transformers, each with the Auto class that people load it with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TASKS: Final = {
    "image-text": ("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
    "seq2seq": ("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    "speech": ("AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"),
    "causal": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "ctc": ("AutoModelForCTC", "MODEL_FOR_CTC_MAPPING_NAMES"),
    "masked": ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    "image": ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
}
"""Tasks in order: a type that several of them map is built for the first, in its largest form.

Types that only ``AutoModel`` maps are parts of these (towers, encoders) or have heads that people rarely quantise.
"""


@dataclass(frozen=True)
class Kind:
    """One type of model.

    Attributes:
        name: ``model_type``.
        task: why it is in the list, a key of `TASKS`.
    """

    name: str
    task: str

    @property
    def auto_class(self) -> Any:
        """The Auto class that loads it."""
        return getattr(transformers, TASKS[self.task][0])

    @property
    def config_class(self) -> Any:
        """The class of its configuration."""
        return CONFIG_MAPPING[self.name]


@cache
def kinds() -> dict[str, Kind]:
    """Return every type, by name, in alphabetical order."""
    found: dict[str, Kind] = {}
    for task, (_, mapping) in TASKS.items():
        for name in getattr(modeling_auto, mapping):
            found.setdefault(name, Kind(name, task))
    return {name: found[name] for name in sorted(found)}


__all__ = ["TASKS", "Kind", "kinds"]
