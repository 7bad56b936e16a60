from rocm_strict import ActivationType as ActivationType
from rocm_strict import QuantType as QuantType
