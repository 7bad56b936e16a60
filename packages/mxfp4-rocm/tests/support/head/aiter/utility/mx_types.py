# The rule that the quantizer of fused_moe has by default: maxima over 6, rounded up.
DEFAULT = 1
