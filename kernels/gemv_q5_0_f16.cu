// y[c] = W . x[c] + bias, W in Q5_0; codes.h tells how it lies and is multiplied.
#include "codes.h"

typedef FormCodes<4, 1, FLOAT, 16, NoSteps> Form;
MUL_KERNELS_FEW(q5_0, Form)
