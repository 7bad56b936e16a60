from rocm_strict import TYPES

torch_to_triton_dtype = TYPES
