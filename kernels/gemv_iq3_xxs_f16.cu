// y[c] = W . x[c] + bias, W in IQ3_XXS; codes.h tells how it lies and is multiplied.
#include "codes.h"

typedef FormCodes<4, 0, TWO, 0, StepsIq3Xxs> Form;
MUL_KERNELS_FEW(iq3_xxs, Form)
