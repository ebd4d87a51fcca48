// y[c] = W . x[c] + bias, W in Q2_K; codes.h tells how it lies and is multiplied.
#include "codes.h"

typedef FormCodes<2, 0, TWO_MIN, 0, NoSteps> Form;
MUL_KERNELS_FEW(q2_k, Form)
