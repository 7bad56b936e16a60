"""Pipelines: a choice for each component, saved and loaded again, and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import components
import diffusers
import pytest
import torch
from diffusers import PipelineQuantizationConfig, ZImagePipeline

import mxfp4_diffusers
import mxfp4_transformers
from mxfp4_core import Mxfp4Config as Mxfp4CoreConfig
from mxfp4_core.jobs import plan_checkpoint, plan_pipeline
from mxfp4_core.modules import Mxfp4Linear

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Z-Image with random weights, text encoder and VAE included."""
    path = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.Qwen3Config(vocab_size=64, num_hidden_layers=2, head_dim=16, **sizes)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    pipe = ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae.to(torch.bfloat16),
        text_encoder=transformers.Qwen3Model(config).to(torch.bfloat16),
        tokenizer=None,
        transformer=components.build("z_image"),
    )
    pipe.save_pretrained(path)
    return path


def load(path: Path, config: Any = None) -> Any:
    given = {} if config is None else {"quantization_config": config}
    pipe = ZImagePipeline.from_pretrained(str(path), dtype=torch.bfloat16, tokenizer=None, **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any) -> torch.Tensor:
    """Return what two steps make, float32."""
    embeds = [torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()]
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    given = {"prompt_embeds": embeds, "latents": latents, "height": 16, "width": 16}
    result = pipe(**given, num_inference_steps=2, guidance_scale=0.0, output_type="pt")
    return result.images.float()


def packed(model: torch.nn.Module) -> int:
    return sum(isinstance(module, Mxfp4Linear) for module in model.modules())


def test_components_are_chosen_one_by_one_and_a_saved_pipeline_needs_no_config(
    folder: Path, tmp_path: Path
) -> None:
    mapping = {
        "transformer": mxfp4_diffusers.Mxfp4Config(),
        "text_encoder": mxfp4_transformers.Mxfp4Config(rule="floor"),
    }
    pipe = load(folder, PipelineQuantizationConfig(quant_mapping=mapping))
    assert (packed(pipe.transformer), packed(pipe.text_encoder), packed(pipe.vae)) == (31, 14, 0)
    image, plain = draw(pipe), draw(load(folder))
    assert 0 < float((image - plain).abs().mean()) < 0.2
    pipe.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert components.same(again.transformer, pipe.transformer) and components.same(
        again.text_encoder, pipe.text_encoder
    )
    assert torch.equal(draw(again), image)


def test_one_name_serves_both_libraries(folder: Path) -> None:
    config = PipelineQuantizationConfig(
        quant_backend="mxfp4-core",
        quant_kwargs={"rule": "floor"},
        components_to_quantize=["transformer", "text_encoder"],
    )
    pipe = load(folder, config)
    assert packed(pipe.transformer) == 31 and packed(pipe.text_encoder) == 14
    assert {each.profile for each in pipe.transformer.hf_quantizer.plan.weights.values()} == {"floor/even"}


def test_a_plan_of_the_folder_decides_as_the_loaders_do(folder: Path) -> None:
    plans = plan_pipeline(folder).plans
    pipe = load(
        folder,
        PipelineQuantizationConfig(
            quant_mapping={
                "transformer": mxfp4_diffusers.Mxfp4Config(),
                "text_encoder": mxfp4_transformers.Mxfp4Config(),
            }
        ),
    )
    assert len(plans["transformer"].quantized) == packed(pipe.transformer)
    assert len(plans["text_encoder"].quantized) == packed(pipe.text_encoder)
    assert plans["transformer"].kinds.startswith("kinds by diffusers")
    assert plans["text_encoder"].kinds.startswith("kinds by transformers")


def test_the_plan_says_how_others_run_the_second_transformer(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    for name in ("transformer", "transformer_2"):
        components.build("wan").save_pretrained(tmp_path / name)
    notes = {name: " ".join(plan.notes) for name, plan in plan_pipeline(tmp_path).plans.items()}
    assert "format='mxfp8'" in notes["transformer_2"] and "format=" not in notes["transformer"]
    eight = Mxfp4CoreConfig.from_dict({"format": "mxfp8"})
    assert "format=" not in " ".join(plan_pipeline(tmp_path, eight).plans["transformer_2"].notes)


def test_what_users_of_a_family_keep_is_kept_by_one_argument(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = diffusers.QwenImageTransformer2DModel(**{**components.QWEN, "num_layers": 6})
    made.to(torch.bfloat16).save_pretrained(tmp_path)
    advised = plan_checkpoint(tmp_path).advised
    assert {"img_mod", "txt_mod", *(f"transformer_blocks.{n}" for n in (0, 1, 4, 5))} == {*advised}
    model = components.load(tmp_path, mxfp4_diffusers.Mxfp4Config(ignore=advised))
    names = [name for name, module in model.named_modules() if isinstance(module, Mxfp4Linear)]
    assert names and {name.split(".")[1] for name in names} == {"2", "3"}
    assert not any("_mod." in name for name in names)


@pytest.mark.parametrize("kind", ["T5EncoderModel", "UMT5EncoderModel"])
def test_text_encoders_of_wan_and_flux_go_through_the_transformers_adapter(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
    made: Any = getattr(transformers, kind)
    made(made.config_class(**sizes, feed_forward_proj="gated-gelu")).to(torch.bfloat16).save_pretrained(
        tmp_path / "a"
    )
    model = made.from_pretrained(
        tmp_path / "a", quantization_config=mxfp4_transformers.Mxfp4Config(), dtype=torch.bfloat16
    )
    ids = torch.tensor([[1, 5, 9]])
    assert packed(model) > 0
    assert torch.isfinite(model(ids).last_hidden_state).all()
    model.save_pretrained(tmp_path / "b")
    assert components.same(made.from_pretrained(tmp_path / "b", dtype=torch.bfloat16), model)
