import rocm_strict
from rocm_strict import ActivationType, QuantType


def fused_moe(
    hidden_states, w1, w2, topk_weight, topk_ids, expert_mask=None, activation=ActivationType.Silu,
    quant_type=QuantType.No, doweight_stage1=False, w1_scale=None, w2_scale=None, a1_scale=None, a2_scale=None,
    block_size_M=None, num_local_tokens=None, moe_sorting_dispatch_policy=0, dtype=None, hidden_pad=0,
    intermediate_pad=0, bias1=None, bias2=None, splitk=0, swiglu_limit=0.0,
):  # fmt: skip
    return rocm_strict.fused_moe(
        hidden_states, w1, w2, topk_weight, topk_ids, expert_mask, activation, quant_type, w1_scale, w2_scale,
        "aiter-hip",
    )  # fmt: skip
