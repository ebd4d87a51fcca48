// y[c] = W . x[c] + bias, W in Q5_K; codes.h tells how it lies and is multiplied.
#include "codes.h"

typedef FormCodes<4, 1, ONE_MIN, 0, NoSteps> Form;
MUL_KERNELS_FEW(q5_k, Form)
