"""Names that SGLang imports and does not call here."""

rotary_embedding = awq_dequantize = None
