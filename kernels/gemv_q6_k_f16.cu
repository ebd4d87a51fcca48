// y[c] = W . x[c] + bias, W in Q6_K; codes.h tells how it lies and is multiplied.
#include "codes.h"

typedef FormCodes<4, 2, TWO, 32, NoSteps> Form;
MUL_KERNELS_FEW(q6_k, Form)
